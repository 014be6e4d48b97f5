"""Selection in large arrays is exact for any sample and needs little memory."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tf_packnet.pruning import selection
from tf_packnet.pruning.ranking import PRUNE_SCOPES, keep_largest, keep_masks

LARGE = 3 * selection.CHUNK + 17


def draws():
    rng = np.random.default_rng(0)
    misleading = rng.normal(size=LARGE).astype("float32")
    misleading[:: LARGE // selection.SAMPLE] = 100.0  # exactly the scores that the sample takes
    constant = np.full(LARGE, 0.5, "float32")
    return {
        "normal": rng.normal(size=LARGE).astype("float32"),
        "float64": rng.normal(size=LARGE),
        "many ties": rng.integers(0, 5, LARGE).astype("float32"),
        "all equal": constant,
        "half zero": np.where(rng.random(LARGE) < 0.5, 0, rng.normal(size=LARGE)).astype("float32"),
        "misleading": misleading,
        "infinite": np.where(rng.random(LARGE) < 0.3, np.inf, -np.inf),
        "sorted": np.arange(LARGE, dtype="float32"),
    }


@pytest.mark.parametrize("name", draws())
@pytest.mark.parametrize("share", [1e-6, 0.03, 0.5, 0.999])
def test_large_arrays_agree_with_a_stable_sort(name, share):
    scores = draws()[name].reshape(1, -1)
    eligible = np.random.default_rng(1).random(scores.shape) < 0.7
    count = max(1, round(share * int(eligible.sum())))
    positions = np.flatnonzero(eligible)
    best = positions[np.argsort(-scores.ravel()[positions], kind="stable")[:count]]
    expected = np.zeros(scores.size, bool)
    expected[best] = True
    np.testing.assert_array_equal(keep_largest(scores, eligible, count).ravel(), expected)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=4), st.data())
def test_the_nth_largest_over_several_arrays(sizes, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 100)))
    scores = [rng.integers(0, 9, size).astype("float32") for size in sizes]
    eligible = [rng.random(size) < 0.8 for size in sizes]
    everything = np.sort(np.concatenate([s[e] for s, e in zip(scores, eligible, strict=True)]))[::-1]
    if everything.size == 0:
        return
    count = data.draw(st.integers(1, everything.size))
    threshold, above = selection.nth_largest(scores, eligible, count)
    assert threshold == everything[count - 1]
    assert above == int((everything > threshold).sum()) < count


@pytest.mark.parametrize("count", range(1, 7))
def test_the_result_is_exact_for_any_bounds_and_needs_one_pass_for_good_ones(count, monkeypatch):
    values, passes, split = np.float32([5, 3, 3, 2, 1, 0]), [], selection._split
    monkeypatch.setattr(selection, "_split", lambda *arguments: passes.append(1) or split(*arguments))
    for high in (np.inf, *range(6), -0.5):
        for low in (-np.inf, *range(6), 5.5):
            monkeypatch.setattr(selection, "_bounds", lambda *_, low=low, high=high: (low, high))
            passes.clear()
            threshold, above = selection.nth_largest([values], [values >= 0], count)
            wanted = values[count - 1]
            assert (threshold, above) == (wanted, (values > wanted).sum())
            if low <= high:
                assert len(passes) == (1 if low <= wanted <= high else 2)


@pytest.mark.parametrize(
    ("size", "count", "ranks"),
    # A count has a standard deviation of sqrt(count * (1 - count / size)). A bound is 6 of them and 1 away.
    [(100, 50, (19, 81)), (100, 29, (0, 58)), (100, 26, (None, 54)), (100, 30, (1, 59)), (100, 71, (42, None)),
     (100, 70, (41, 99)), (100, 1, (None, 8)), (100, 100, (99, None)), (1, 1, (0, None)),
     (1000, 500, (19, 81)), (199, 100, (56, 144))],
)  # fmt: skip
def test_the_bounds_are_six_standard_deviations_away_in_the_sample(size, count, ranks, monkeypatch):
    monkeypatch.setattr(selection, "SAMPLE", 100)
    values = np.arange(size, dtype=float)
    step = max(1, size // 100)
    sample = values[::step][::-1]
    expected = [limit if rank is None else sample[rank] for rank, limit in zip(ranks, (np.inf, -np.inf), strict=True)]
    low, high = selection._bounds([values], [values >= 0], count, np.asarray)
    assert [high, low] == expected


def test_a_key_gives_the_same_as_a_copy():
    values = np.random.default_rng(2).normal(size=(300, 70)).astype("float32")
    eligible = np.ones(values.shape, bool)
    for scope in PRUNE_SCOPES:
        magnitudes = keep_masks([np.abs(values)], [eligible], [values.size], 0.1, scope)
        keyed = keep_masks([values], [eligible], [values.size], 0.1, scope, key=np.abs)
        np.testing.assert_array_equal(magnitudes, keyed)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_no_array_as_large_as_the_scores_is_allocated(scope):
    """The masks need 1 byte per weight; all other arrays are chunks."""
    values = [np.random.default_rng(3).normal(size=(2048, 4096)).astype("float32") for _ in range(2)]
    eligible = [np.ones(v.shape, bool) for v in values]
    weights = sum(v.size for v in values)
    tracemalloc.start()
    keep_masks(values, eligible, [v.size for v in values], 0.2, scope, key=np.abs)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * weights
