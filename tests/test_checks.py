"""Checks of arguments."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dr_plugin.checks import (
    as_array,
    as_indices,
    as_number,
    check_choice,
    check_flag,
    check_length,
    check_number,
    check_path,
    check_seed,
    check_whole,
    check_whole_or_none,
    check_wholes,
    shown,
)


@pytest.mark.parametrize("value", [1, 0.5, np.float32(0.5), np.int64(3), 1e-300])
def test_number_within_its_limits_is_taken_as_a_float(value):
    taken = check_number("gap", value, above=0)
    assert (type(taken), taken) == (float, float(value))


def test_minimum_itself_is_taken_and_without_limits_any_finite_number():
    assert check_number("step", 0, minimum=0) == 0
    assert check_number("weight", -3.5) == -3.5


@pytest.mark.parametrize(
    "value", [0, -1, math.nan, math.inf, -math.inf, True, "1", None, np.float32("nan"), 10**400]
)
def test_anything_else_is_refused_by_name(value):
    with pytest.raises(ValueError, match=r"gap: got .*, expected a finite number above 0$"):
        check_number("gap", value, above=0)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"minimum": 0.5}, "expected a finite number at least 0.5$"),
        ({"above": 0, "minimum": 1}, "expected a finite number above 0 and at least 1$"),
    ],
)
def test_limits_are_named(limits, message):
    with pytest.raises(ValueError, match=message):
        check_number("step", 0.4 if "above" not in limits else 0, **limits)


def test_without_limits_what_is_not_finite_is_refused():
    with pytest.raises(ValueError, match=r"weight: got nan, expected a finite number$"):
        check_number("weight", math.nan)


@pytest.mark.parametrize("value", [3, np.int8(3), np.uint64(3)])
def test_whole_number_of_any_kind_is_taken_as_an_int(value):
    for taken in (check_whole("k", value, minimum=3), check_whole_or_none("k", value, minimum=3, below=4)):
        assert (type(taken), taken) == (int, 3)


@pytest.mark.parametrize("value", [2, 4, 2**70, 3.0, True, np.bool_(True), "3", torch.tensor(3), np.array(3)])
def test_what_is_no_whole_number_within_its_limits_is_refused(value):
    with pytest.raises(ValueError, match=r"^k: got .*, expected a whole number, at least 3 and below 4$"):
        check_whole("k", value, minimum=3, below=4)
    with pytest.raises(ValueError, match=r"^k: got .*, at least 3 and below 4, or None$"):
        check_whole_or_none("k", value, minimum=3, below=4)


@pytest.mark.parametrize("value", [2**63, np.uint64(2**63), 10**400])
def test_whole_number_of_more_than_63_bits_is_refused_and_the_limit_named(value):
    with pytest.raises(ValueError, match=r"seed: got .*, at least 0 and below 2\^63$"):
        check_whole("seed", value, minimum=0)
    with pytest.raises(ValueError, match=r"seed: got .*, at least 0 and below 2\^63, or None$"):
        check_whole_or_none("seed", value, minimum=0)


def test_seed_may_have_128_bits():
    assert check_seed(2**128 - 1) == 2**128 - 1
    for value in (2**128, -1, 0.5, None):
        with pytest.raises(ValueError, match=r"^seed: got .*, at least 0 and below 2\^128$"):
            check_seed(value)


def test_whole_numbers_are_taken_from_lists_and_vectors_alone():
    assert check_wholes("ks", (1, np.int8(2)), minimum=1) == [1, 2]
    assert check_wholes("ks", range(0), minimum=1) == []
    assert check_wholes("ks", np.array([1, 3]), minimum=1) == [1, 3]
    for values in (None, 3, "12", np.array(3), np.zeros((1, 1), int), {1, 2}):
        with pytest.raises(ValueError, match=r"^ks: got .*, expected whole numbers in a list or a tuple"):
            check_wholes("ks", values, minimum=1)
    with pytest.raises(ValueError, match=r"^ks: got 0, expected a whole number, at least 1 and below"):
        check_wholes("ks", [1, 0], minimum=1)


@pytest.mark.parametrize("value", [None, "1", 1j, True, 10**400, torch.tensor(1.0)])
def test_what_is_no_number_is_nan(value):
    assert math.isnan(as_number(value))


def test_flag_is_a_truth_value_and_nothing_else():
    assert check_flag("exact", np.bool_(True)) is True
    for value in (0, 1, None, "yes", np.zeros(2), torch.tensor(True)):
        with pytest.raises(ValueError, match=r"^exact: got .*, expected True or False$"):
            check_flag("exact", value)


@pytest.mark.parametrize("value", ["Best", None, ["best"], np.array(["best", "best"]), b"best"])
def test_choice_is_one_of_the_names(value):
    check_choice("method", "best", ("best", "worst"))
    with pytest.raises(ValueError, match=r"^method: got .*, expected one of best, worst$"):
        check_choice("method", value, ("best", "worst"))


def test_path_is_what_names_one(tmp_path):
    assert check_path("folder", str(tmp_path)) == check_path("folder", tmp_path) == Path(tmp_path)
    for value in (None, 3, b"folder", ["folder"]):
        with pytest.raises(ValueError, match=r"^folder: got .*, expected a path$"):
            check_path("folder", value)


def test_length_is_refused_where_there_is_none():
    assert check_length("groups", "abc", "groups") == 3
    for value in (None, 3, np.array(3), torch.tensor(3)):
        with pytest.raises(ValueError, match=r"^groups: got .*, expected one a triplet$"):
            check_length("groups", value, "one a triplet")


def test_rows_of_several_lengths_are_no_array():
    assert as_array("table", [[1, 2], [3, 4]]).shape == (2, 2)
    with pytest.raises(
        ValueError, match=r"^table: got \[\[1, 2\], \[3\]\], expected an array, or rows of one"
    ):
        as_array("table", [[1, 2], [3]])


def test_indices_are_a_list_of_whole_numbers_in_range():
    assert as_indices("i", [], 0).dtype == np.int64
    assert as_indices("i", np.array([1, 0], np.uint8), 2).tolist() == [1, 0]
    for values in ([0.0], [[0]], 0, [[]], "0", [None]):
        with pytest.raises(ValueError, match=r"^i: got .*, expected integers of shape"):
            as_indices("i", values, 2)
    for values in ([-1], [2], [2**64 - 1]):
        with pytest.raises(IndexError, match=r"^i: got .*, expected 0 to 1$"):
            as_indices("i", values, 2)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.zeros((2, 3)), "ndarray of float64, shape (2, 3)"),
        (torch.zeros(2, 3), "Tensor of torch.float32, shape (2, 3)"),
        ("a\nb", "'a\\nb'"),
        (list(range(1000)), "..."),
    ],
)
def test_value_is_shown_in_one_short_line(value, text):
    found = shown(value)
    assert text in found
    assert "\n" not in found
    assert len(found) <= 100
