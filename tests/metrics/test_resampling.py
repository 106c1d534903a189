"""Bootstrap intervals against an explicit loop, and the clusters they draw."""

import numpy as np
import pytest
import torch

from dr_plugin.metrics.resampling import bootstrap_interval, check_resampling, cluster_sums


def loop_interval(sums, counts, confidence, resamples, seed):
    """Clusters drawn one by one, with their own numbers, not by kind."""
    generator = np.random.default_rng(seed)
    shares = []
    for _ in range(resamples):
        total = number = 0.0
        for cluster in generator.integers(len(sums), size=len(sums)).tolist():
            total, number = total + sums[cluster], number + counts[cluster]
        if number > 0:
            shares.append(total / number)
    return np.quantile(shares, [(1 - confidence) / 2, (1 + confidence) / 2])


@pytest.mark.parametrize("confidence", [0.5, 0.95])
@pytest.mark.parametrize("empty", [0, 15])
def test_interval_equals_the_loop(confidence, empty):
    generator = np.random.default_rng(0)
    counts = generator.integers(1, 9, 40).astype(float)
    counts[:empty] = 0  # clusters without a counted triplet
    sums = counts * generator.random(40)
    found = bootstrap_interval(sums, counts, confidence=confidence, resamples=4000, seed=0)
    assert found == pytest.approx(loop_interval(sums, counts, confidence, 1500, 1), abs=0.015)
    assert found[0] < sums.sum() / counts.sum() < found[1]


def test_empty_clusters_widen_the_interval():
    sums, counts = np.tile([1.0, 0.0], 20), np.ones(40)
    none, some = (
        bootstrap_interval(
            np.append(sums, np.zeros(empty)),
            np.append(counts, np.zeros(empty)),
            confidence=0.95,
            resamples=4000,
            seed=0,
        )
        for empty in (0, 400)
    )
    assert some[1] - some[0] > 1.01 * (none[1] - none[0])


def test_resamples_that_all_count_nothing_are_nan():
    sums, counts = np.array([1.0, 0.0]), np.array([1.0, 0.0])
    found = [bootstrap_interval(sums, counts, confidence=0.95, resamples=1, seed=seed) for seed in range(40)]
    assert {value for low, high in found for value in (low, high) if not np.isnan(value)} == {1.0}
    assert 2 < sum(np.isnan(low) and np.isnan(high) for low, high in found) < 25  # each with probability 1/4


@pytest.mark.parametrize("clusters", [0, 1])
def test_fewer_than_two_clusters_are_nan(clusters):
    found = bootstrap_interval(np.ones(clusters), np.ones(clusters), confidence=0.9, resamples=9, seed=0)
    assert np.isnan(found).all()


def test_numbers_of_numpy_are_taken():
    sums, counts = np.array([0.0, 1, 1]), np.ones(3)
    numpy = {"confidence": np.float32(0.75), "resamples": np.int64(50), "seed": np.uint8(3)}
    plain = {"confidence": 0.75, "resamples": 50, "seed": 3}
    assert bootstrap_interval(sums, counts, **numpy) == bootstrap_interval(sums, counts, **plain)
    check_resampling(np.float32(0.95), np.int32(1), np.int64(0))


@pytest.mark.parametrize(
    "groups",
    [
        ["b", "a", "b", "c"],
        [7, 2, 7, 9],
        np.array(["b", "a", "b", "c"], dtype=object),
        torch.tensor([7, 2, 7, 9]),
    ],
)
def test_cluster_sums_equal_the_loop(groups):
    values, counted = np.array([1.0, 0.5, 0, 1]), np.array([1.0, 1, 1, 0])
    sums, counts = cluster_sums(values, counted, groups)
    assert (sums.tolist(), counts.tolist()) == ([0.5, 1, 1], [1, 2, 0])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"confidence": 1}, r"confidence=1, expected a number inside \(0, 1\)"),
        ({"confidence": "0.9"}, "confidence='0.9'"),
        ({"confidence": float("nan")}, "confidence=nan"),
        ({"resamples": 0}, "resamples: got 0, expected a whole number, at least 1"),
        ({"resamples": 2.0}, "resamples: got 2.0"),
        ({"seed": -1}, "seed: got -1"),
        ({"seed": True}, "seed: got True"),
    ],
)
def test_bad_arguments_are_refused(options, match):
    arguments = {"confidence": 0.9, "resamples": 5, "seed": 0} | options
    with pytest.raises(ValueError, match=match):
        check_resampling(**arguments)
    with pytest.raises(ValueError, match=match):
        bootstrap_interval(np.ones(2), np.ones(2), **arguments)


@pytest.mark.parametrize(
    ("groups", "match"),
    [
        (["a"], r"groups: got shape \(1,\), expected one for each of the 3 triplets"),
        (["a", None, "b"], "groups: got values of NoneType, str, expected names or ids, of one kind"),
        ([None, None, None], "groups: got values of NoneType"),
    ],
)
def test_bad_groups_are_refused(groups, match):
    with pytest.raises(ValueError, match=match):
        cluster_sums(np.ones(3), np.ones(3), groups)
