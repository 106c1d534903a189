"""Checks of arguments that are numbers."""

import math

import numpy as np
import pytest

from dr_plugin.checks import check_number


@pytest.mark.parametrize("value", [1, 0.5, np.float32(0.5), np.int64(3), 1e-300])
def test_number_within_its_limits_is_taken_as_a_float(value):
    taken = check_number("gap", value, above=0)
    assert (type(taken), taken) == (float, float(value))


def test_minimum_itself_is_taken_and_without_limits_any_finite_number():
    assert check_number("step", 0, minimum=0) == 0
    assert check_number("weight", -3.5) == -3.5


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, -math.inf, True, "1", None, np.float32("nan")])
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
