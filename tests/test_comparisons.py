"""Statistics over seeds: paired differences, the claims of the paper, and curves matched to a target accuracy."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tf_packnet.experiments import claims
from tf_packnet.experiments.match_curve import fit
from tf_packnet.reporting.comparisons import Interval, by_seed, difference, differences, interval


def frame_of(accuracies, columns=("final_prune", "prune_rounds")):
    """One row per setting, seed and task; the two tasks of a run differ by 0.1."""
    rows = [
        {**dict(zip(columns, setting, strict=True)), "seed": seed, "task": task, "accuracy": value + 0.1 * (task - 1.5)}
        for setting, values in accuracies.items()
        for seed, value in enumerate(values)
        if value is not None
        for task in (1, 2)
    ]
    return pd.DataFrame(rows)


def test_the_interval_is_that_of_all_samples():
    """For four seeds there are 256 samples, which can be enumerated."""
    rng = np.random.default_rng(1)
    accuracies = rng.random((2, 4))
    found = interval(accuracies, lambda means: means[1] - means[0])
    samples = [accuracies[:, list(chosen)].mean(axis=1) for chosen in itertools.product(range(4), repeat=4)]
    exact = np.array([second - first for first, second in samples])
    assert found.value == pytest.approx(accuracies[1].mean() - accuracies[0].mean())
    for end, quantile in ((found.low, 0.025), (found.high, 0.975)):
        below, above = np.quantile(exact, [quantile - 0.008, quantile + 0.008])
        assert below <= end <= above
    assert found == interval(accuracies, lambda means: means[1] - means[0])  # the same each time


def test_seeds_are_compared_with_themselves():
    noise = np.random.default_rng(0).random(8)
    frame = frame_of({(0.9, 1): noise, (0.9, 2): noise + 0.01, (0.5, 1): noise[:1], (0.5, 3): noise[:1]})
    (row,) = differences(frame, ["final_prune", "prune_rounds"], "prune_rounds").to_dict("records")
    assert (row["final_prune"], row["prune_rounds"], row["n"]) == (0.9, 2, 8)
    assert [row[name] for name in ("difference", "low", "high")] == pytest.approx([0.01] * 3)


def test_a_run_that_is_missing_is_left_out_of_both_settings():
    accuracies = by_seed(frame_of({(1,): [0.5, None, 0.7], (2,): [0.6, 0.0, 0.8]}, ["prune_rounds"]), ["prune_rounds"])
    assert difference(accuracies, 2, 1) == pytest.approx(Interval(0.1, 0.1, 0.1, 2))
    assert np.isnan(difference(accuracies[[0]], 2, 1).low)
    assert difference(accuracies[[1]], 2, 1).seeds == 0


ROUNDS = {1: 0.9, 2: 0.88, 4: 0.92}


def runs_at(low_p, high_p, seeds=6, noise=0.001):
    rng = np.random.default_rng(0)
    by_p = {0.5: low_p, 0.9: high_p}
    return frame_of(
        {(p, n): mean + noise * rng.standard_normal(seeds) for p, means in by_p.items() for n, mean in means.items()}
    )


@pytest.mark.parametrize(
    ("low_p", "high_p", "seeds", "expected"),
    [
        (dict.fromkeys(ROUNDS, 0.95), ROUNDS, 6, ["holds", "holds"]),
        (ROUNDS, dict.fromkeys(ROUNDS, 0.95), 6, ["does not hold", "cannot be told"]),
        (dict.fromkeys(ROUNDS, 0.95), {1: 0.9, 2: 0.92, 4: 0.93}, 6, ["holds", "does not hold"]),
        (dict.fromkeys(ROUNDS, 0.95), ROUNDS, 4, ["cannot be told", "cannot be told"]),
    ],
)
def test_the_claims_about_rounds(low_p, high_p, seeds, expected):
    verdicts = claims.about_rounds(runs_at(low_p, high_p, seeds), "mnist")
    assert [each.verdict for each in verdicts] == expected
    assert f"{seeds} seeds" in verdicts[0].sentence()


def test_the_claim_about_cifar10():
    frame = runs_at({1: 0.9, 2: 0.89, 4: 0.88}, {1: 0.9, 2: 0.91, 4: 0.88})
    verdicts = {each.claim: each.verdict for each in claims.about_rounds(frame, "cifar10")}
    assert verdicts["one-shot pruning is best on CIFAR-10 (p = 0.5)"] == "holds"
    assert verdicts["one-shot pruning is best on CIFAR-10 (p = 0.9)"] == "does not hold"
    assert claims.about_rounds(frame_of({(0.5, 1): [0.9]}), "cifar10") == []


def test_the_claim_about_compression():
    clear, unclear = Interval(2.5, 2.1, 2.9, 5), Interval(2.5, 1.9, 2.9, 5)
    assert claims.about_compression([("one", unclear)]).verdict == "cannot be told"
    assert claims.about_compression([("one", Interval(1.5, 1.2, 1.9, 5))]).verdict == "does not hold"
    verdict = claims.about_compression([("one", Interval(1.5, 1.2, 1.9, 5)), ("two", clear)])
    assert verdict.verdict == "holds"
    assert "2.50 [2.10, 2.90] times as many at best (two, 5 seeds" in verdict.evidence
    assert claims.about_compression([]) is None


@given(
    st.lists(st.floats(0.5, 1.0), min_size=2, max_size=8),
    st.lists(st.floats(0.01, 2.0), min_size=8, max_size=8),
    st.floats(0.5, 1.0),
)
def test_the_curve_falls_and_crosses_the_target_where_it_says(accuracies, steps, target):
    compressions = 2.0 ** np.cumsum(steps[: len(accuracies)])
    curve = fit(compressions, np.array(accuracies)[:, None], np.array([target]), 0.001)
    x, y = np.array(curve.points).T
    assert (np.diff(y) <= 1e-12).all()
    assert y.mean() == pytest.approx(np.mean(accuracies))
    at_match = np.interp(np.log2(curve.compression.value), np.log2(x), y)
    if curve.reaches:
        assert at_match == pytest.approx(target, abs=1e-6)
    else:
        assert y[0] < target or y[-1] >= target
        assert curve.compression.value == pytest.approx(x[0] if y[0] < target else x[-1])


def test_a_match_by_hand():
    accuracies = np.array([[0.9, 0.92], [0.79, 0.81], [0.8, 0.82], [0.7, 0.7]])
    curve = fit([1, 2, 4, 8], accuracies, np.array([0.86, 0.86]), 0.001)
    assert curve.reaches
    assert not curve.is_flat
    assert [value for _, value in curve.points] == pytest.approx([0.91, 0.805, 0.805, 0.7])
    assert curve.compression.value == pytest.approx(2 ** ((0.91 - 0.86) / (0.91 - 0.805)))
    assert curve.compression.low < curve.compression.value < curve.compression.high
    flat = fit([8, 1, 2, 4], np.array([[0.7], [0.8605], [0.86], [0.8595]]), np.array([0.86]), 0.001)
    assert flat.is_flat
    assert flat.within == pytest.approx((1.0, 4 * 2 ** ((0.8595 - 0.859) / (0.8595 - 0.7))))
    assert np.isnan(flat.compression.low)
