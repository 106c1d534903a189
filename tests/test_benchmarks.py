"""The benchmark suite at tiny sizes: every row is there and finite, table and JSON agree; its figures mean nothing."""

import gc
import importlib
import json
import math
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import linregress

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

# What each row sets beside what a user would pick instead.
WANTED = {
    "data pipeline": {
        ("PackedImages + BatchAugment, pixel shift, flip", "ImageFolder + v2 + DataLoader"),
        ("PackedImages + BatchAugment, random resized crop, flip", "ImageFolder + v2 + DataLoader"),
        ("TripletStream", "WebDataset, shuffle buffer of as many images"),
    },
    "trainer": {
        ("RankingTrainer, float32", "a bare loop"),
        ("RankingTrainer, float32", "PML MetricLossOnly"),
    },
    "miners": {
        ("UniformTripletMiner", "PML get_random_triplet_indices"),
        ("UniformTripletMiner", "PML TripletMarginMiner, all triplets"),
        ("ReservoirTripletMiner, current embeddings", "PML get_random_triplet_indices"),
        ("ReservoirTripletMiner, external relevance, 20% out of class", "PML get_random_triplet_indices"),
        ("HardQuadrupletMiner, one quadruplet", "PML BatchHardMiner"),
        ("RankedNegativeMiner", "PML BatchHardMiner"),
    },
    "samplers": {
        ("UniformTripletSampler", "PML MPerClassSampler, m = 3"),
        ("ReservoirTripletSampler, capacity=None", "PML MPerClassSampler, m = 3"),
        ("ReservoirTripletSampler, bounded", "PML MPerClassSampler, m = 3"),
        ("OfflineTripletSampler", "PML FixedSetOfTriplets, given its set"),
        ("DistributedBatchSampler over UniformTripletSampler", "UniformTripletSampler alone"),
    },
    "losses": {
        ("DeepRankingLoss", "PML TripletMarginLoss"),
        (
            "PDDMLoss with HardQuadrupletMiner, one quadruplet",
            "PML TripletMarginLoss with BatchHardMiner",
        ),
        ("LRMLLoss", "PML TripletMarginLoss with BatchHardMiner"),
        ("LRMLLoss", "PML ContrastiveLoss"),
        ("CrossBatchMemory, all pairs", "PML CrossBatchMemory, all pairs"),
        ("ReservoirMemory, all pairs, by relevance", "PML CrossBatchMemory, all pairs"),
    },
    "evaluation": {
        ("nearest", "the matrix product alone"),
        ("nearest", "faiss IndexFlatL2"),
        ("RankingAccuracyCalculator, P@k", "PML AccuracyCalculator, FaissKNN, P@1"),
    },
    "reservoirs": {
        ("ClassReservoirs.extend", "a loop with heapq"),
        ("WeightedReservoir, a-res, one class", "numpy choice(replace=False, p=)"),
        ("ClassReservoirs.draw", "numpy choice(p=), one by one"),
    },
    "triplets": {
        ("RelevantTriplets.draw", "numpy choice(p=), one by one"),
        ("RelevantTriplets.draw", "torch.multinomial on the queries' rows"),
    },
}
CURVES = {"B", "C", "N"}  # batch size, classes, data set size


@pytest.fixture
def script(monkeypatch):
    """Import a file of the benchmarks, as it is when it runs as a script."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def case(script):
    """A comparison of what is given; its `seconds` pass in each call."""
    cases = script("_cases")

    def make(ours=lambda: None, theirs=lambda: None, amounts=(1, 1), **options):
        def sides(*, device, B):
            return cases.Sides(ours, theirs, amounts)

        return cases.Case("losses", "ours", "theirs", sides, {"B": 4}, **options)

    return make


# WebDataset leaves its shards to be closed when they are collected.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_suite_at_tiny_sizes_has_every_row_finite_and_both_tables_agree(script, tmp_path, capsys):
    suite = script("suite")
    assert suite.main(["--quick", "--device", "cpu", "--output", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "table.json").read_text())
    ratios = [row for row in content["rows"] if row["along"] is None]
    for group, pairs in WANTED.items():
        assert pairs <= {(row["what"], row["against"]) for row in ratios if row["group"] == group}
    for row in content["rows"]:
        figures = [row["seconds"], row["their_seconds"], row["ratio"], *row["quartiles"]]
        assert all(math.isfinite(figure) and figure > 0 for figure in figures), row
        assert row["quartiles"][0] <= row["ratio"] <= row["quartiles"][1]
        if row["group"] == "losses" and row["along"] is None:
            assert row["peak_bytes"] >= 0
            assert row["their_peak_bytes"] >= 0
    assert {curve["along"] for curve in content["growth"]} >= CURVES
    for curve in content["growth"]:
        assert curve["error"] is None
        assert math.isfinite(curve["exponent"] + curve["their_exponent_error"])
    assert_same(ratios, (tmp_path / "table.md").read_text())
    assert capsys.readouterr().out.startswith("# Benchmarks")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
    gc.collect()


def assert_same(rows, markdown):
    """The table has the rows of the JSON, in their order and with their figures, as far as it shows them."""
    sections = dict(re.findall(r"^## (.+?)\n\n(.+?)(?=\n\n|\Z)", markdown, re.MULTILINE | re.DOTALL))
    for group in {row["group"]: None for row in rows}:
        table = [line.strip("| ").split(" | ") for line in sections[group.capitalize()].splitlines()[2:]]
        wanted = [row for row in rows if row["group"] == group]
        assert len(table) == len(wanted)
        for cells, row in zip(table, wanted, strict=True):
            assert (cells[0], cells[3]) == (row["what"], row["against"])
            assert cells[1] == ", ".join(f"{name} {size:,}" for name, size in row["sizes"].items())
            shown = [float(figure.replace(",", "")) for figure in (cells[5], *cells[6].split(" to "))]
            assert shown == pytest.approx([row["ratio"], *row["quartiles"]], rel=0.06)
            assert (cells[7] == "-") == (row["peak_bytes"] is None)


def test_rows_that_fail_say_so_and_the_rest_is_measured(script, case, tmp_path, monkeypatch, capsys):
    suite = script("suite")

    def fail():
        raise ZeroDivisionError("no | such\nthing")

    monkeypatch.setattr(suite, "all_cases", lambda quick: [case(ours=fail), case(), case(theirs=fail)])
    assert suite.main(["--quick", "--device", "cpu", "--output", str(tmp_path)]) == 1
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert [row["error"] is None for row in rows] == [False, True, False]
    table = (tmp_path / "table.md").read_text()
    assert table.count("failed: ZeroDivisionError: no / such thing") == 2
    assert "times as fast\n" in capsys.readouterr().err


def test_an_interrupt_keeps_what_was_measured(script, case, tmp_path, monkeypatch):
    suite = script("suite")

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(suite, "all_cases", lambda quick: [case(), case(ours=interrupt), case()])
    with pytest.raises(KeyboardInterrupt):
        suite.main(["--quick", "--device", "cpu", "--output", str(tmp_path)])
    assert len(json.loads((tmp_path / "table.json").read_text())["rows"]) == 1


def test_only_picks_rows_by_group_and_names(script, case, tmp_path, monkeypatch, capsys):
    suite = script("suite")
    many = [case(), replace(case(), what="HardQuadrupletMiner"), replace(case(), group="miners")]
    monkeypatch.setattr(suite, "all_cases", lambda quick: many)
    options = ["--quick", "--device", "cpu", "--output", str(tmp_path), "--only"]
    assert suite.main([*options, "^miners:|quadruplet"]) == 0
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert [(row["group"], row["what"]) for row in rows] == [
        ("losses", "HardQuadrupletMiner"),
        ("miners", "ours"),
    ]
    assert suite.main([*options, "nothing"]) == 2
    assert "which no row's name matches" in capsys.readouterr().err


def test_ratio_is_theirs_over_ours_of_one_unit(script, case, monkeypatch):
    """By a clock of our own: ours takes 2 s for 4 units, theirs 6, 8 and 7 s for 2."""
    cases = script("_cases")
    pairs = iter([{"ours": [1.0], "theirs": [1.0]}, {"ours": [2.0] * 3, "theirs": [6.0, 8.0, 7.0]}])
    monkeypatch.setattr(cases, "paired", lambda *arguments, **options: next(pairs))
    (row,) = cases.measured([case(amounts=(4, 2))], torch.device("cpu"), cases.FULL)
    assert (row.seconds, row.their_seconds, row.ratio, row.quartiles) == (0.5, 3.5, 7.0, (6.5, 7.5))
    assert row.repeats == 4  # as many pairs of 2 s as fit 8 s


@pytest.mark.parametrize(("seconds", "pairs"), [(1e-9, 15), (1.0, 8), (100.0, 3)])
def test_effort_is_as_many_pairs_as_fit(script, seconds, pairs):
    assert script("_cases").FULL.pairs(seconds) == pairs


def test_a_fresh_process_sees_the_peak_of_each_side(script):
    """Of a matrix of 1,024 x T floats that the loss of PML makes, and ours does not."""
    cases, losses = script("_cases"), script("deep_ranking_loss")
    sizes = {"B": 1024, "T": 64, "D": 8}
    (row,) = cases.measured(
        [cases.Case("losses", "ours", "theirs", losses.sides, sizes, peak=True)],
        torch.device("cpu"),
        cases.QUICK,
    )
    assert row.error is None
    assert row.their_peak_bytes > 2 * 4 * 1024**2  # distances and their gradient
    assert row.peak_bytes < 4 * 1024**2


def test_fit_is_least_squares_of_logarithms(script):
    growth = script("_growth")
    sizes = [10, 20, 40, 80, 160]
    assert growth.fit(sizes, [3e-6 * size**1.5 for size in sizes]) == pytest.approx((1.5, 0.0), abs=1e-6)
    noisy = [1e-3, 2.2e-3, 3.7e-3, 8.4e-3, 1.5e-2]
    wanted = linregress(np.log(sizes), np.log(noisy))
    assert growth.fit(sizes, noisy) == pytest.approx((wanted.slope, wanted.stderr))


def test_fit_of_two_sizes_is_refused(script):
    with pytest.raises(ValueError, match="got 2 different sizes, expected at least 3"):
        script("_growth").fit([1, 2, 2], [1.0, 2.0, 2.0])


def test_curve_with_failed_points_is_fitted_to_the_others(script):
    growth = script("_growth")
    row = {"group": "losses", "what": "a", "against": "b", "along": "B", "unit": "call", "error": None}
    points = [
        {**row, "sizes": {"B": size}, "seconds": size**2, "their_seconds": size} for size in (4, 1, 3, 2)
    ]
    points[0] |= {"error": "out of memory", "seconds": None, "their_seconds": None}
    (curve,) = growth.growths([*points, {**row, "along": None}])
    assert curve["sizes"] == [1, 2, 3]
    assert (curve["exponent"], curve["their_exponent"]) == pytest.approx((2.0, 1.0))
    (curve,) = growth.growths(points[:3])
    assert "expected at least 3" in curve["error"]
    assert "failed" in growth.growth_table([curve])


@pytest.mark.parametrize(
    ("seconds", "unit", "text"),
    [
        (2.5, "call", "2.50 s"),
        (0.0125, "epoch", "12.5 ms per epoch"),
        (3.456e-6, "call", "3.46 µs"),
        (2e-10, "call", "0.20 ns"),
        (5e-4, "image", "2,000 images/s"),
    ],
)
def test_cost_is_a_time_or_a_rate(script, seconds, unit, text):
    assert script("_tables").cost(seconds, unit) == text


def test_a_script_alone_takes_its_sizes_as_options(script, capsys):
    tables, miner = script("_tables"), script("uniform_miner")
    options = ["--quick", "--device", "cpu", "--batch-sizes", "8", "12", "--batch-curve", "--class-curve"]
    sizes = tables.alone("About it.", miner.cases, miner.FULL, miner.QUICK, options)
    assert sizes == {**miner.QUICK, "batch_sizes": [8, 12], "batch_curve": [], "class_curve": []}
    table = capsys.readouterr().out
    assert [line.split(" | ")[1] for line in table.splitlines() if line.startswith("| Uniform")] == [
        "B 8, C 2, per_query 2",
        "B 12, C 3, per_query 2",
        "B 16, C 4, per_query 2",
    ]


def test_regions_count_their_own_time_alone(script, monkeypatch):
    profile = script("profile_step")
    now = iter([0, 1, 3, 6, 10, 15])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    regions = profile.Regions(torch.device("cpu"))
    with regions.region("outer"):  # 0
        with regions.region("inner"):  # 1
            regions.rename("other", "never")
            regions.rename("inner", "renamed")  # 3
        # 6
        with regions.region("empty"):  # 10
            monkeypatch.setattr(time, "perf_counter", lambda: 10)
        monkeypatch.setattr(time, "perf_counter", lambda: 15)
    assert dict(regions.seconds) == {"outer": 1 + 4 + 5, "inner": 2, "renamed": 3, "empty": 0}


@pytest.mark.parametrize("stage", ["ranking", "softmax"])
def test_profile_of_a_step_divides_all_of_it(script, stage, capsys):
    profile = script("profile_step")
    small = ["stages.softmax.batch_size=8", "stages.ranking.batch_size=20", "data.image_size=32"]
    small += ["data.classes=4", "trunk.convnet.width=8"]
    overrides = [word for override in small for word in ("--set", override)]
    profile.main(["--stage", stage, "--steps", "2", "--device", "cpu", "--operators", "4", *overrides])
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    shares = {
        line[0]: float(line[3].rstrip("%")) for line in lines if len(line) == 4 and line[3].endswith("%")
    }
    never = {"mine"} if stage == "softmax" else set()
    assert {name for name in profile.OWNERS if shares[name] == 0} - {"data", "bookkeeping"} <= never
    assert sum(shares[name] for name in profile.OWNERS) == pytest.approx(100, abs=1)
    assert sum(line[0].startswith("aten::") for line in lines) >= 2


def test_profile_of_an_unknown_stage_is_refused(script):
    with pytest.raises(ValueError, match="--stage: got rank, expected one of softmax, ranking"):
        script("profile_step").main(["--stage", "rank", "--device", "cpu"])
