"""Similarity precision against loops, its ties, and its interval against slow resampling."""

import random
from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dr_plugin.metrics import similarity_precision, triplets_right


def loop(near, far, ties):
    """The definition, triplet by triplet."""
    right = wrong = tied = 0
    for p, n in zip(near.tolist(), far.tolist(), strict=True):
        right, wrong, tied = right + (p < n), wrong + (p > n), tied + (p == n)
    value = {
        "half": (right + tied / 2) / (right + wrong + tied),
        "wrong": right / (right + wrong + tied),
        "left_out": right / max(1, right + wrong),
    }[ties]
    return value, right, wrong, tied, right + wrong + (tied if ties != "left_out" else 0)


def slow_interval(right, groups, resamples, seed=0):
    """Groups drawn one by one, their triplets gathered, the share taken."""
    generator = random.Random(seed)
    members = defaultdict(list)
    for value, group in zip(right, groups, strict=True):
        members[group].append(value)
    shares = []
    for _ in range(resamples):
        drawn = [
            value for group in generator.choices(list(members), k=len(members)) for value in members[group]
        ]
        shares.append(sum(drawn) / len(drawn))
    return np.quantile(shares, [0.025, 0.975])


@pytest.mark.parametrize("ties", ["half", "wrong", "left_out"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.long])
def test_figures_equal_the_loop(ties, dtype):
    generator = torch.Generator().manual_seed(3)
    near, far = torch.randint(6, (2, 200), generator=generator).to(dtype)
    result = similarity_precision(near, far, ties=ties, resamples=50)
    assert (result.value, result.right, result.wrong, result.tied, result.n) == pytest.approx(
        loop(near, far, ties)
    )
    assert float(result) == result.value
    assert result.tied > 10


def test_all_right_all_wrong_all_tied():
    low, high = torch.zeros(5), torch.ones(5)
    for near, far, value in ((low, high, 1), (high, low, 0), (low, low, 0.5)):
        result = similarity_precision(near, far, resamples=20)
        assert (result.value, result.low, result.high) == (value, value, value)
    assert similarity_precision(low, low, ties="wrong", resamples=20).value == 0
    with pytest.raises(ValueError, match="5 triplets, all tied, with ties='left_out'"):
        similarity_precision(low, low, ties="left_out")


def test_interval_of_single_triplets_is_the_binomials():
    # 10,000 resamples of T right-or-wrong triplets: the share is Binomial(T, p) / T.
    right = torch.arange(1000) % 10 < 7
    result = similarity_precision(torch.where(right, 0.0, 2.0), torch.ones(1000))
    half_width = 1.96 * (0.7 * 0.3 / 1000) ** 0.5
    assert result.low == pytest.approx(0.7 - half_width, abs=0.002)
    assert result.high == pytest.approx(0.7 + half_width, abs=0.002)


@pytest.mark.parametrize("names", [str, int])
def test_interval_of_groups_equals_slow_resampling(names):
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 9, (60,), generator=generator).tolist()
    groups = [names(g) for g, size in enumerate(sizes) for _ in range(size)]
    hard = torch.rand(60, generator=generator)
    near = torch.tensor([(torch.rand((), generator=generator) * hard[int(g)]).item() for g in groups])
    far = torch.rand(len(groups), generator=generator) * 0.4
    right = triplets_right(near, far).tolist()
    result = similarity_precision(near, far, groups=groups)
    assert [result.low, result.high] == pytest.approx(slow_interval(right, groups, 4000), abs=0.012)
    alone = similarity_precision(near, far)
    assert result.high - result.low > 1.15 * (alone.high - alone.low)
    assert result.value == alone.value


def test_groups_of_whole_copies_are_as_wide_as_one_of_each():
    near, far = torch.tensor([0.0, 2, 0, 0, 2, 0, 0, 0]), torch.ones(8)
    once = similarity_precision(near, far)
    groups = torch.arange(8).repeat(5)
    five = similarity_precision(near.repeat(5), far.repeat(5), groups=groups)
    assert (five.low, five.high) == (once.low, once.high)
    assert five.n == 40


def test_groups_by_any_kind_of_names_are_the_same():
    near, far = torch.rand(2, 40, generator=torch.Generator().manual_seed(0))
    numbers = [i // 4 for i in range(40)]
    expected = similarity_precision(near, far, groups=numbers)
    assert similarity_precision(near, far, groups=torch.tensor(numbers)) == expected
    assert similarity_precision(near, far, groups=np.array(numbers)) == expected
    assert similarity_precision(near, far, groups=[chr(97 + i) for i in numbers]) == expected


def test_resamples_that_count_nothing_are_left_out():
    near, far = torch.tensor([1.0, 1, 0]), torch.ones(3)
    result = similarity_precision(near, far, ties="left_out", groups=["a", "a", "b"], resamples=200)
    assert (result.value, result.low, result.high, result.n) == (1.0, 1.0, 1.0, 1)


def test_resamples_that_all_count_nothing_are_nan():
    near, far, groups = torch.tensor([1.0, 1, 0]), torch.ones(3), ["a", "a", "b"]
    options = {"ties": "left_out", "groups": groups, "resamples": 1}
    results = [similarity_precision(near, far, seed=seed, **options) for seed in range(40)]
    assert {result.value for result in results} == {1.0}
    nothing = [np.isnan(result.low) and np.isnan(result.high) for result in results]
    assert 2 < sum(nothing) < 25  # each with probability 1/4


def test_seed_repeats_and_confidence_widens():
    near, far = torch.rand(2, 300, generator=torch.Generator().manual_seed(1))
    state = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = similarity_precision(near, far, groups=[i // 3 for i in range(300)])
    assert first == similarity_precision(near, far, groups=[i // 3 for i in range(300)])
    assert first != similarity_precision(near, far, groups=[i // 3 for i in range(300)], seed=1)
    narrow = similarity_precision(near, far, confidence=0.5)
    assert (
        similarity_precision(near, far).low < narrow.low < narrow.high < similarity_precision(near, far).high
    )
    assert torch.equal(state[0], torch.random.get_rng_state())
    assert (state[1] == np.random.get_state()[1]).all()  # noqa: NPY002


@pytest.mark.parametrize("groups", [None, ["a", "a", "a"]])
def test_nothing_to_resample_is_nan(groups):
    near, far = (torch.zeros(1), torch.ones(1)) if groups is None else (torch.zeros(3), torch.ones(3))
    result = similarity_precision(near, far, groups=groups)
    assert result.value == 1
    assert np.isnan(result.low)
    assert np.isnan(result.high)


def test_numpy_is_taken():
    near, far = np.array([0.1, 0.5]), np.array([0.2, 0.3])
    assert similarity_precision(near, far) == similarity_precision(torch.tensor(near), torch.tensor(far))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=30))
def test_swapped_answers_complement(pairs):
    near, far = torch.tensor(pairs).T
    one, other = similarity_precision(near, far, resamples=20), similarity_precision(far, near, resamples=20)
    assert one.value + other.value == pytest.approx(1)
    assert (one.right, one.wrong, one.tied) == (other.wrong, other.right, other.tied)
    assert 0 <= one.low <= one.high <= 1
    assert similarity_precision(near, far, ties="wrong", resamples=20).value <= one.value


@pytest.mark.parametrize(
    ("near", "far", "options", "match"),
    [
        ([1.0, float("nan")], [1.0, 2.0], {}, r"positive_distances: got nan for triplet 1 \(1 such in all\)"),
        ([1.0, 2.0], [float("inf"), 2.0], {}, "negative_distances: got inf for triplet 0"),
        ([1.0], [1.0, 2.0], {}, r"expected one shape \(T,\)"),
        ([[1.0]], [[1.0]], {}, r"expected one shape \(T,\)"),
        ([], [], {}, "got no triplets"),
        ([1.0], [2.0], {"ties": "right"}, "ties='right', expected 'half', 'wrong' or 'left_out'"),
        ([1.0], [2.0], {"groups": ["a", "b"]}, r"groups: got shape \(2,\), expected one for each of the 1"),
        (
            [1.0] * 2,
            [2.0] * 2,
            {"groups": ["a", None]},
            "groups: got values of NoneType, str, expected names or",
        ),
        ([1j], [2.0], {}, "positive_distances: got torch.complex64, expected real numbers"),
        ([1.0], [2.0], {"confidence": 95}, r"confidence=95, expected a number inside \(0, 1\)"),
        ([1.0], [2.0], {"resamples": 0}, "resamples: got 0, expected a whole number, at least 1"),
        ([1.0], [2.0], {"seed": -1}, "seed: got -1"),
    ],
)
def test_bad_input_is_refused(near, far, options, match):
    with pytest.raises(ValueError, match=match):
        similarity_precision(torch.tensor(near), torch.tensor(far), **options)
