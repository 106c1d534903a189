"""A comparison's table against figures worked out otherwise, most of them by scipy."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from .compare_cases import (
    FIGURE,
    VARIANTS,
    evaluations,
    finish,
    stage,
    table,
    variant,
    with_softmax,
)

VALUES = {
    "gap_small": [0.50, 0.55, 0.52],
    "contrastive": [0.70, 0.74, 0.73],
    "memory": [0.69, 0.75, 0.71],
    "arcface": [0.20, 0.45, 0.30],
}
NAMES = list(VALUES)


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    """Four variants, three seeds each."""
    for name, values in VALUES.items():
        for seed, value in enumerate(values):
            finish(tmp_path, name, seed, value)
    return tmp_path


# -- levels and ranks ------------------------------------------------------------------------------------------------


def test_variants_have_mean_deviation_values_and_rank(comparison: Path) -> None:
    found = table(comparison, VARIANTS)
    assert (found["name"], found["finished"], found["total"]) == ("trial", 12, 12)
    for row, place in zip(found["variants"], (3, 1, 2, 4), strict=True):
        item, own = row["figures"][FIGURE], VALUES[row["name"]]
        assert (item["n"], item["rank"]) == (3, place)
        assert item["mean"] == pytest.approx(np.mean(own))
        assert item["std"] == pytest.approx(np.std(own, ddof=1))
        assert item["values"] == dict(zip("012", own, strict=True))
        assert row["runs"]["1"] == f"runs/{row['name']}-seed1"
    assert found["variants"][0]["label"] == "gap small"
    assert found["variants"][0]["settings"] == {
        "stages.ranking.loss": {"type": "DeepRankingLoss", "gap": 0.1}
    }


def test_differences_are_those_of_the_paired_t_test(comparison: Path) -> None:
    pairs = table(comparison, VARIANTS)["pairs"][FIGURE]
    assert [(pair["first"], pair["second"]) for pair in pairs] == list(itertools.combinations(NAMES, 2))
    for pair in pairs:
        test = stats.ttest_rel(VALUES[pair["first"]], VALUES[pair["second"]])
        low, high = test.confidence_interval(0.95)
        assert (pair["low"], pair["high"]) == (pytest.approx(low), pytest.approx(high))
        assert pair["p_value"] == pytest.approx(test.pvalue)
        wanted = "tie" if test.pvalue > 0.05 else "better" if test.statistic > 0 else "worse"
        assert pair["verdict"] == wanted
    assert {pair["verdict"] for pair in pairs} == {"tie", "better", "worse"}


# -- runs ------------------------------------------------------------------------------------------------------------


def test_failed_and_unfinished_runs_leave_their_cells_open(comparison: Path) -> None:
    (comparison / "runs" / "memory-seed2" / "report" / "report.html").unlink()
    late = variant("late", {"type": "SupConLoss"})
    failures = {"late-seed0": "the loss became nan", "late-seed2": "again"}
    found = table(comparison, [*VARIANTS, late], failures=failures)
    assert (found["finished"], found["total"]) == (11, 15)
    memory, row = found["variants"][2], found["variants"][4]
    assert (memory["figures"][FIGURE]["n"], memory["failed"], list(memory["runs"])) == (2, {}, ["0", "1"])
    assert row["failed"] == {"0": "the loss became nan", "2": "again"}
    assert row["figures"][FIGURE] == {"n": 0, "mean": None, "std": None, "values": {}, "rank": None}
    assert row["peak_memory_mib"]["mean"] is None
    assert row["course"]["points"] == []
    assert "so far" in found["winners"][FIGURE]["sentence"]


def test_nothing_is_open_where_all_else_failed(comparison: Path) -> None:
    late = variant("late", {"type": "SupConLoss"})
    failures = {f"late-seed{seed}": "why" for seed in (0, 1, 2)}
    assert (
        "so far" not in table(comparison, [*VARIANTS, late], failures=failures)["winners"][FIGURE]["sentence"]
    )


def test_costs_are_those_of_the_stages_after_the_shared_ones(tmp_path: Path) -> None:
    variants = [with_softmax(one) for one in VARIANTS[:2]]
    for seed in (0, 1):
        stages = [
            stage("before", 1000, 10.0, 100.0, 9999.0),
            stage("ranking", 600, 300.0 * (seed + 1), 2.0, 500.0 + seed),
        ]
        finish(tmp_path, "gap_small", seed, 0.5, stages=stages)
    first, second = table(tmp_path, variants, shared_stages=1)["variants"]
    assert first["images_per_s"] == {"n": 2, "mean": 450.0, "std": pytest.approx(np.std([300, 600], ddof=1))}
    assert first["peak_memory_mib"]["mean"] == 500.5
    assert (first["training_time_s"]["mean"], first["images_seen"]["mean"]) == (2.0, 600.0)
    assert (first["wall_time_s"]["mean"], first["peak_memory_of"]) == (60.5, ["process"])
    assert (second["images_per_s"]["n"], second["peak_memory_of"]) == (0, [])
    assert table(tmp_path, variants)["variants"][0]["peak_memory_mib"]["mean"] == 9999.0


@pytest.mark.parametrize("peak", [None, "none"])
def test_older_runs_have_no_peak_memory(tmp_path: Path, peak: str | None) -> None:
    own = stage("ranking", 600, 300.0, 2.0, None) | ({"peak_memory_mib": None} if peak else {})
    finish(tmp_path, "gap_small", 0, 0.5, stages=[own], peak_memory_of=None)
    row = table(tmp_path, VARIANTS)["variants"][0]
    assert row["peak_memory_mib"] == {"n": 0, "mean": None, "std": None}
    assert (row["peak_memory_of"], row["images_per_s"]["mean"]) == ([], 300.0)


def test_course_is_the_mean_over_the_seeds_after_the_same_epoch(tmp_path: Path) -> None:
    variants = [with_softmax(one) for one in VARIANTS[:2]]
    stages = [stage("before", 1000, 10.0, 100.0, 1.0), stage("ranking", 600, 300.0, 2.0, 1.0)]
    before = ("before", 1, 1000, 0.9)
    runs = [finish(tmp_path, "gap_small", seed, 0.5, stages=stages) for seed in (0, 1, 2)]
    evaluations(runs[0], before, ("ranking", 1, 200, 0.2), ("ranking", 2, 400, 0.4))
    evaluations(runs[1], before, ("ranking", 1, 220, 0.3), ("ranking", 2, 440, None))
    found = table(tmp_path, variants, shared_stages=1)["variants"][0]["course"]
    assert found["figure"] == "precision_at_30"
    one, two = found["points"]
    assert one == {"images_seen": 210.0, "n": 2, "mean": 0.25, "std": pytest.approx(0.1 / math.sqrt(2))}
    assert two == {"images_seen": 400.0, "n": 1, "mean": 0.4, "std": None}
    whole = table(tmp_path, variants)["variants"][0]["course"]["points"]
    assert [point["images_seen"] for point in whole] == [1000.0, 1210.0, 1400.0]


def test_environments_are_told_apart_without_their_seeds(comparison: Path) -> None:
    (comparison / "runs" / "memory-seed2" / "environment.json").write_text('{"device": "another", "seed": 2}')
    (comparison / "runs" / "memory-seed1" / "environment.json").unlink()
    assert table(comparison, VARIANTS)["environments"] == [
        {"runs": 10, "environment": {"packages": {"torch": "2.6"}, "device": "a processor"}},
        {"runs": 1, "environment": {"device": "another"}},
    ]
