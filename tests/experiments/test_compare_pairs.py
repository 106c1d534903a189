"""Paired differences, their correction and who wins, against scipy, closed forms and definitions."""

import math
import random
from typing import Any

import numpy as np
import pytest

from dr_plugin.experiments.compare_pairs import between, holm, paired, ranks, winner

from .compare_cases import FIGURE


def test_equal_means_share_a_rank_and_a_missing_one_has_none() -> None:
    means = {"a": 0.5, "b": None, "c": 0.7, "d": 0.5, "e": 0.1}
    assert ranks(FIGURE, means) == {"a": 2, "b": None, "c": 1, "d": 2, "e": 4}


@pytest.mark.parametrize("figure", ["wall_time_s", "peak_memory_mib"])
def test_less_time_and_memory_are_better(figure: str) -> None:
    assert ranks(figure, {"a": 10.0, "b": 5.0}) == {"a": 2, "b": 1}
    (pair,) = paired(figure, {"a": {0: 10.0, 1: 10.5, 2: 10.2}, "b": {0: 5.0, 1: 5.4, 2: 5.2}})
    assert (pair["verdict"], pair["mean"]) == ("worse", pytest.approx(31 / 3 - 5.3, abs=0.2))


# -- paired differences ----------------------------------------------------------------------------------------------


def test_interval_and_p_value_agree_in_every_table() -> None:
    draw = random.Random(3)
    for _ in range(60):
        seeds = range(draw.choice([2, 3, 5]))
        values = {
            name: {seed: draw.gauss(shift, 1) for seed in seeds} for name, shift in (("a", 0), ("b", 2))
        }
        (pair,) = paired(FIGURE, values)
        assert (pair["p_value"] > 0.05) == (pair["low"] <= 0 <= pair["high"]) == (pair["verdict"] == "tie")
        assert pair["p_holm"] == pair["p_value"]  # one pair needs no correction


def test_closed_form_of_two_seeds() -> None:
    (pair,) = paired(FIGURE, {"a": {0: 0.6, 1: 0.9}, "b": {0: 0.5, 1: 0.6}})
    # Differences 0.1 and 0.3: Student's t with one degree of freedom is Cauchy's law, whose quantile is a tangent.
    reach = math.tan(0.475 * math.pi) * 0.1
    assert pair["mean"] == pytest.approx(0.2)
    assert (pair["low"], pair["high"]) == (pytest.approx(0.2 - reach), pytest.approx(0.2 + reach))
    assert pair["p_value"] == pytest.approx(1 - 2 * math.atan(2) / math.pi)
    assert pair["verdict"] == "tie"


def test_equal_values_tie() -> None:
    values = {0: 0.5, 1: 0.25, 2: 0.125}
    (pair,) = paired(FIGURE, {"a": values, "b": dict(values)})
    assert (pair["low"], pair["mean"], pair["high"]) == (0, 0, 0)
    assert (pair["p_value"], pair["verdict"]) == (1, "tie")


@pytest.mark.parametrize("gap", [0.25, -0.25, 0.1])
def test_the_same_difference_in_all_seeds_tells_nothing_of_others(gap: float) -> None:
    """As when one query more is right with each of three seeds: no spread to judge it by."""
    others = {0: 0.5, 1: 0.25, 2: 0.125}
    (pair,) = paired(FIGURE, {"a": {seed: value + gap for seed, value in others.items()}, "b": others})
    assert pair["mean"] == pytest.approx(gap)
    assert [pair[key] for key in ("low", "high", "p_value", "p_holm", "verdict")] == [None] * 5


def test_pairs_are_over_common_seeds_and_untold_with_fewer_than_two() -> None:
    values = {"a": {0: 0.5, 1: 0.6, 2: 0.7}, "b": {1: 0.5, 2: 0.65}, "c": {0: 0.1}, "d": {}}
    pairs = {(pair["first"], pair["second"]): pair for pair in paired(FIGURE, values)}
    assert (pairs["a", "b"]["n"], pairs["a", "b"]["mean"]) == (2, pytest.approx(0.075))
    assert (pairs["a", "c"]["n"], pairs["a", "c"]["mean"]) == (1, pytest.approx(0.4))
    for ends in (("a", "c"), ("b", "c"), ("a", "d")):
        told = [pairs[ends][key] for key in ("low", "high", "p_value", "p_holm", "verdict")]
        assert told == [None] * 5
    assert pairs["b", "c"]["mean"] is None
    assert pairs["a", "b"]["p_holm"] == pairs["a", "b"]["p_value"]  # untold pairs are not corrected for


def test_pair_turned_round_is_the_other_difference() -> None:
    pairs = paired(FIGURE, {"a": {0: 0.5, 1: 0.61, 2: 0.7}, "b": {0: 0.2, 1: 0.3, 2: 0.41}})
    one, other = between("a", "b", pairs), between("b", "a", pairs)
    assert one is not None
    assert other is not None
    assert other["low"] == -one["high"] < other["mean"] == -one["mean"] < other["high"] == -one["low"]
    assert (one["verdict"], other["verdict"]) == ("better", "worse")
    assert between("a", "a", pairs) is None


def test_holm_by_the_definition() -> None:
    def naive(p_values: list[float]) -> list[float]:
        """Of each p-value the smallest level at which the sequential test rejects it."""
        count = len(p_values)

        def rejected(level: float) -> set[int]:
            order, found = sorted(range(count), key=lambda i: p_values[i]), set()
            for step, i in enumerate(order):
                if p_values[i] > level / (count - step):
                    break
                found.add(i)
            return found

        levels = sorted(
            {min(1.0, p_value * factor) for p_value in p_values for factor in range(1, count + 1)}
        )
        return [
            next(level for level in [*levels, 1.0] if i in rejected(level + 1e-12) or level == 1)
            for i in range(count)
        ]

    draw = random.Random(5)
    for count in (1, 2, 5, 9):
        p_values = [draw.random() ** 4 for _ in range(count)]
        assert holm(p_values) == pytest.approx(naive(p_values))
    assert holm([0.01, None, 0.04, 0.03]) == [0.03, None, pytest.approx(0.06), pytest.approx(0.06)]
    assert holm([]) == []


# -- who wins --------------------------------------------------------------------------------------------------------


def sentence(values: dict[str, dict[int, float]], so_far: bool = False) -> dict[str, Any]:
    means = {name: float(np.mean(list(own.values()))) if own else None for name, own in values.items()}
    places = ranks(FIGURE, means)
    rows = [
        {
            "name": name,
            "label": name.upper(),
            "figures": {FIGURE: {"n": len(own), "mean": means[name], "std": None, "rank": places[name]}},
        }
        for name, own in values.items()
    ]
    return winner(FIGURE, rows, paired(FIGURE, values), so_far)


GOOD, NEAR, POOR = {0: 0.9, 1: 0.92, 2: 0.91}, {0: 0.91, 1: 0.9, 2: 0.9}, {0: 0.5, 1: 0.51, 2: 0.52}


def test_one_variant_wins_where_all_others_are_worse() -> None:
    found = sentence({"a": POOR, "b": GOOD})
    assert found == {
        "best": "b",
        "tied": [],
        "untold": [],
        "sentence": f"One variant wins: B has the best {FIGURE}, 0.9100 (n = 3); it is better than all others. "
        "That judges each pair by itself; corrected for all pairs, 1 of 1 still hold.",
    }


def test_ties_with_the_best_are_named() -> None:
    found = sentence({"a": GOOD, "b": POOR, "c": NEAR}, so_far=True)
    assert (found["best"], found["tied"]) == ("a", ["c"])
    assert found["sentence"].startswith("No single variant wins so far: A has the best")
    assert found["sentence"].endswith(
        "(n = 3); it is better than B and ties with C. That judges each pair by "
        "itself; corrected for all pairs, 1 of 1 still hold."
    )


def test_a_single_seed_tells_no_winner() -> None:
    found = sentence({"a": {0: 0.9}, "b": {0: 0.1}})
    assert (found["best"], found["tied"], found["untold"]) == ("a", [], ["b"])
    assert found["sentence"].startswith("No single variant wins: A has")
    assert "cannot be told from B" in found["sentence"]


def test_a_lucky_seed_cannot_win_over_variants_with_more() -> None:
    found = sentence({"a": POOR, "b": {0: 0.99}, "c": {}})
    assert (found["best"], found["untold"]) == ("a", ["b"])
    assert found["sentence"].endswith("Not measured: C.")


def test_many_names_are_counted() -> None:
    found = sentence({"a": GOOD, "b": NEAR} | {f"p{i}": POOR for i in range(7)})
    assert "is better than 7 others and ties with B." in found["sentence"]


def test_nothing_measured_is_said() -> None:
    found = sentence({"a": {}, "b": {}})
    assert (found["best"], found["sentence"]) == (None, f"{FIGURE} is not measured yet.")
