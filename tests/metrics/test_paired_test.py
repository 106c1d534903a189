"""The paired test against all sign patterns, scipy's binomial test, and slow resampling."""

import itertools
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from dr_plugin.metrics import paired_test

VALUES = st.sampled_from([0.0, 0.5, 1.0])


def all_signs(differences):
    """Share of all sign patterns whose sum is at least as far from 0."""
    observed = abs(sum(differences))
    patterns = list(itertools.product((1, -1), repeat=len(differences)))
    far = sum(
        abs(sum(s * d for s, d in zip(signs, differences, strict=True))) >= observed for signs in patterns
    )
    return far / len(patterns)


@given(st.lists(st.tuples(VALUES, VALUES, st.integers(0, 5)), min_size=1, max_size=9))
def test_p_value_equals_all_sign_patterns(rows):
    first, second, groups = map(list, zip(*rows, strict=True))
    differences = [a - b for a, b in zip(first, second, strict=True)]
    alone = paired_test(torch.tensor(first), torch.tensor(second), resamples=10)
    assert alone.p_value == pytest.approx(all_signs(differences))
    sums = [sum(d for d, g in zip(differences, groups, strict=True) if g == group) for group in set(groups)]
    grouped = paired_test(torch.tensor(first), torch.tensor(second), groups=groups, resamples=10)
    assert grouped.p_value == pytest.approx(all_signs(sums))
    assert alone.difference == grouped.difference == pytest.approx(sum(differences) / len(rows))
    assert alone.first_only == sum(d > 0 for d in differences)
    assert alone.second_only == sum(d < 0 for d in differences)


@pytest.mark.parametrize(("first_only", "second_only"), [(5, 1), (40, 25), (300, 10), (7, 7), (0, 3)])
def test_p_value_without_ties_is_mcnemars(first_only, second_only):
    first = torch.tensor([1.0] * first_only + [0.0] * second_only + [1.0] * 50)
    second = torch.tensor([0.0] * first_only + [1.0] * second_only + [1.0] * 50)
    result = paired_test(first, second, resamples=10)
    expected = binomtest(first_only, first_only + second_only, 0.5).pvalue
    assert result.p_value == pytest.approx(expected, rel=1e-9)
    assert (result.first_only, result.second_only, result.n) == (first_only, second_only, len(first))


def test_models_that_agree_do_not_differ():
    right = torch.tensor([1.0, 0, 0.5, 1])
    result = paired_test(right, right, groups=["a", "a", "b", "c"])
    assert (result.difference, result.low, result.high, result.p_value) == (0, 0, 0, 1)


def test_swapped_models_mirror():
    first, second = torch.randint(2, (2, 200), generator=torch.Generator().manual_seed(0)).double()
    one, other = paired_test(first, second), paired_test(second, first)
    assert one.p_value == other.p_value
    assert one.difference == -other.difference
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=0.02)


def test_interval_equals_slow_resampling_of_groups():
    generator = torch.Generator().manual_seed(0)
    groups = [i // 5 for i in range(300)]
    lean = torch.rand(60, generator=generator).repeat_interleave(5)
    first = (torch.rand(300, generator=generator) < lean).double()
    second = (torch.rand(300, generator=generator) < 0.4).double()
    result = paired_test(first, second, groups=groups)
    sums = (first - second).view(60, 5).sum(1).tolist()
    draws = random.Random(0)
    means = [sum(draws.choices(sums, k=60)) / 300 for _ in range(5000)]
    assert [result.low, result.high] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.012)


def test_groups_that_are_copies_add_no_evidence():
    first, second = torch.tensor([1.0, 1, 1, 1, 1, 0]), torch.tensor([0.0, 0, 0, 0, 0, 1])
    once = paired_test(first, second)
    copied = paired_test(first.repeat(8), second.repeat(8), groups=torch.arange(6).repeat(8))
    assert copied.p_value == pytest.approx(once.p_value)
    assert paired_test(first.repeat(8), second.repeat(8)).p_value < 1e-4


def test_p_value_is_uniform_where_neither_is_better():
    generator = torch.Generator().manual_seed(0)
    below = 0
    for _ in range(300):
        first, second = torch.randint(2, (2, 100), generator=generator).double()
        below += paired_test(first, second, resamples=2).p_value <= 0.1
    assert 10 <= below <= 45  # 0.1 of 300, less what a discrete test gives away


@pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.float16, torch.bfloat16, torch.float64])
def test_right_and_wrong_of_any_type_and_numpy(dtype):
    first, second = torch.tensor([1, 1, 0, 1]).to(dtype), torch.tensor([0, 1, 0, 0]).to(dtype)
    result = paired_test(first, second)
    assert (result.difference, result.first_only, result.p_value) == (0.5, 2, 0.5)
    assert paired_test(np.array([1.0, 1, 0, 1]), np.array([0.0, 1, 0, 0])) == result


@pytest.mark.parametrize(
    ("first", "second", "options", "match"),
    [
        ([1.0, 0.7], [0.0, 1.0], {}, "first_right: got 0.69.*expected 0, 0.5"),
        ([1.0, 0.0], [0.0, 2.0], {}, "second_right: got 2.0"),
        ([1.0, float("nan")], [0.0, 1.0], {}, "first_right: got nan for triplet 1"),
        ([1.0], [0.0, 1.0], {}, r"expected one shape \(T,\)"),
        ([], [], {}, "got no triplets"),
        ([1.0], [0.0], {"groups": []}, "groups: got shape"),
        ([1.0], [0.0], {"confidence": 1.0}, "confidence=1.0"),
        ([1.0], [0.0], {"resamples": True}, "resamples: got True"),
    ],
)
def test_bad_input_is_refused(first, second, options, match):
    with pytest.raises(ValueError, match=match):
        paired_test(torch.tensor(first), torch.tensor(second), **options)
