import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tf_packnet.errors import ArgumentError, DivergedError
from tf_packnet.pruning.ranking import PRUNE_SCOPES, erk_densities, keep_largest, keep_masks

# Few distinct values, so that there are many ties.
scores = hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=6), elements=st.sampled_from([0, 0.5, 1, 2]))


def brute_force(values, eligible, count):
    """Sort everything: largest first, then lowest index."""
    order = sorted(np.flatnonzero(eligible), key=lambda i: (-values.ravel()[i], i))
    mask = np.zeros(values.size, bool)
    mask[order[:count]] = True
    return mask.reshape(values.shape)


@given(scores, st.data())
def test_keep_largest_agrees_with_a_sort(values, data):
    eligible = data.draw(hnp.arrays(bool, values.shape))
    count = data.draw(st.integers(0, int(eligible.sum())))
    np.testing.assert_array_equal(keep_largest(values, eligible, count), brute_force(values, eligible, count))


@given(st.lists(st.integers(1, 200), min_size=1, max_size=4), st.floats(0.001, 0.999), st.integers(1, 12))
def test_layer_scope_keeps_exactly_the_rounded_count_after_every_round(sizes, released, rounds):
    rng = np.random.default_rng(sum(sizes))
    values = [rng.normal(size=size) for size in sizes]
    left = [np.ones(size, bool) for size in sizes]
    z = 1 - (1 - released) ** (1 / rounds)
    for n in range(1, rounds + 1):
        left = keep_masks(values, left, sizes, (1 - z) ** n, "layer")
        assert [int(mask.sum()) for mask in left] == [round(c * (1 - z) ** n) for c in sizes]


@pytest.mark.parametrize("scope", PRUNE_SCOPES)
@pytest.mark.parametrize(("fraction", "expected"), [(0.0, 0), (1.0, 24)])
def test_fractions_0_and_1_are_legal(scope, fraction, expected):
    values = [np.ones((2, 3)), np.ones((3, 6))]
    everything = [np.ones(v.shape, bool) for v in values]
    kept = keep_masks(values, everything, [6, 18], fraction, scope)
    assert sum(int(mask.sum()) for mask in kept) == expected


def test_equal_magnitudes_keep_the_lowest_indices():
    mask = keep_largest(np.full((2, 5), 3.0), np.ones((2, 5), bool), 7)
    np.testing.assert_array_equal(mask.ravel(), [True] * 7 + [False] * 3)


@given(scores, scores, st.floats(0, 1))
def test_global_scope_is_one_ranking_over_all_layers(first, second, fraction):
    eligible = [np.ones(first.shape, bool), np.ones(second.shape, bool)]
    sizes = [first.size, second.size]
    kept = keep_masks([first, second], eligible, sizes, fraction, "global")
    both = brute_force(
        np.concatenate([first.ravel(), second.ravel()]), np.ones(sum(sizes), bool), round(sum(sizes) * fraction)
    )
    np.testing.assert_array_equal(np.concatenate([mask.ravel() for mask in kept]), both)


def rigl_densities(shapes, density):
    """Erdos-Renyi-Kernel densities by bisection on the common factor: a different algorithm than RigL's."""
    sizes = np.array([np.prod(s) for s in shapes], float)
    raw = np.array([sum(s) for s in shapes]) / sizes
    low, high = 0.0, 1.0 / raw.min()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if (np.minimum(1, middle * raw) * sizes).sum() < density * sizes.sum() else (low, middle)
        )
    return np.minimum(1, high * raw)


@given(
    st.lists(st.lists(st.integers(1, 40), min_size=2, max_size=4).map(tuple), min_size=1, max_size=6),
    st.floats(0.001, 0.999),
)
def test_erk_densities_are_those_of_rigl(shapes, density):
    sizes = [int(np.prod(s)) for s in shapes]
    ours = erk_densities(shapes, sizes, density)
    np.testing.assert_allclose(ours, rigl_densities(shapes, density), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(np.dot(ours, sizes), density * sum(sizes), rtol=1e-9)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5), st.floats(0, 1), st.data())
def test_erk_divides_the_candidates_that_are_left_up_to_the_cap(shapes, density, data):
    counts = [data.draw(st.integers(0, np.prod(shape))) for shape in shapes]
    cap = data.draw(st.floats(0.01, 1))
    densities = erk_densities(shapes, counts, density, cap)
    assert all(0 <= each <= max(cap, density) for each in densities)
    np.testing.assert_allclose(np.dot(densities, counts), density * sum(counts), rtol=1e-9, atol=1e-12)


def test_erk_keeps_a_small_layer_whole_if_no_task_follows():
    values = [np.arange(24.0).reshape(4, 6), np.arange(3600.0).reshape(60, 60)]
    everything = [np.ones(v.shape, bool) for v in values]
    kept = keep_masks(values, everything, [24, 3600], 0.1, "erk")
    assert [int(mask.sum()) for mask in kept] == [24, 338]  # 362 of 3624


def test_erk_leaves_small_layers_to_later_tasks():
    conv_net = [(3, 3, 3, 32), (3, 3, 32, 64), (3, 3, 64, 128), (3, 3, 128, 128), (8192, 1024)]
    sizes = [int(np.prod(s)) for s in conv_net]
    densities = erk_densities(conv_net, sizes, density=0.044, cap=1 / 5)
    assert densities[0] == 0.2  # five tasks share the first convolution equally
    assert densities[0] > densities[2] > densities[-1]
    np.testing.assert_allclose(np.dot(densities, sizes), 0.044 * sum(sizes))


@pytest.mark.parametrize("scope", PRUNE_SCOPES)
@given(st.integers(1, 6), st.floats(0.01, 0.99), st.integers(1, 10))
def test_no_scope_brings_a_pruned_weight_back(scope, tasks_left, released, rounds):
    rng = np.random.default_rng(rounds)
    values = [rng.normal(size=s) for s in [(3, 3, 1, 4), (30, 20), (20, 5)]]
    sizes = [v.size for v in values]
    left = [np.ones(v.shape, bool) for v in values]
    for n in range(1, rounds + 1):
        kept = keep_masks(values, left, sizes, (1 - released) ** (n / rounds), scope, erk_cap=1 / tasks_left)
        assert all((mask <= before).all() for mask, before in zip(kept, left, strict=True))
        left = kept


def test_not_a_number_is_refused():
    with pytest.raises(DivergedError, match="has diverged. Try a smaller learning rate"):
        keep_largest(np.array([1.0, np.nan]), np.ones(2, bool), 1)


@pytest.mark.parametrize("count", [-1, 3])
def test_impossible_counts_are_refused(count):
    with pytest.raises(ValueError, match=f"between 0 and the 2 .* Received: count={count}"):
        keep_largest(np.ones(2), np.ones(2, bool), count)


def test_unknown_scope_is_refused():
    with pytest.raises(ArgumentError, match="one of layer, global, erk"):
        keep_masks([np.ones(2)], [np.ones(2, bool)], [2], 0.5, "everywhere")
