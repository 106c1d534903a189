"""How the benchmarks' figures come about: ratios, efforts, threads, fits, and the table and files that they go to."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import linregress

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


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
    many += [replace(many[1], on="cuda"), replace(many[2], on="cpu", peak=True, what="on the CPU")]
    monkeypatch.setattr(suite, "all_cases", lambda quick: many)
    options = ["--quick", "--device", "cpu", "--output", str(tmp_path), "--only"]
    assert suite.main([*options, "^miners:|quadruplet", "--no-peak"]) == 0
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert [(row["group"], row["what"]) for row in rows] == [
        ("losses", "HardQuadrupletMiner"),
        ("miners", "ours"),
        ("miners", "on the CPU"),
    ]
    assert all(row["peak_bytes"] is None for row in rows)
    with pytest.raises(SystemExit, match="2"):
        suite.main([*options, "nothing"])
    assert "which no row's name matches" in capsys.readouterr().err


def test_ratio_is_theirs_over_ours_of_one_unit(script, case, monkeypatch):
    """By a clock of our own: ours takes 2 s for 4 units, theirs 6, 8 and 7 s for 2, and a minute when called first."""
    cases, harness = script("_cases"), script("_harness")
    now, theirs = [0.0], iter([60.0, 6.0, 8.0, 7.0])
    monkeypatch.setattr(harness.time, "perf_counter", lambda: now[0])

    def passing(seconds):
        def call():
            now[0] += next(seconds)

        return call

    given = case(passing(iter([60.0, 2.0, 2.0, 2.0])), passing(theirs), (4, 2))
    (row,) = cases.measured([given], torch.device("cpu"), replace(cases.FULL, seconds=24))
    assert (row.seconds, row.their_seconds, row.ratio, row.quartiles) == (0.5, 3.5, 7.0, (6.5, 7.5))
    assert row.repeats == 3  # as many pairs of 8 s as fit 24 s: the cold calls tell nothing


def test_short_calls_are_repeated_within_a_sample(script, case, monkeypatch):
    """By a clock that takes 50 us to read: of calls of 0.2 and 3 ms, the first is to be seen through it."""
    cases, harness = script("_cases"), script("_harness")
    now, calls = [0.0], {"ours": 0, "theirs": 0}

    def read():
        now[0] += 25e-6
        return now[0]

    def passing(name, seconds):
        def call():
            calls[name] += 1
            now[0] += seconds

        return call

    monkeypatch.setattr(harness.time, "perf_counter", read)
    given = case(passing("ours", 2e-4), passing("theirs", 3e-3))
    (row,) = cases.measured([given], torch.device("cpu"), replace(cases.FULL, repeats=4))
    assert row.seconds == pytest.approx(2e-4, rel=0.02)
    assert row.their_seconds == pytest.approx(3e-3, rel=0.01)
    assert calls["ours"] >= 2 + 4 * 8
    assert calls["theirs"] == 2 + 4


def test_threads_are_set_for_a_case_and_put_back(script, case):
    cases, seen, before = script("_cases"), [], torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        given = [
            replace(case(lambda: seen.append(torch.get_num_threads())), threads=threads)
            for threads in (2, None)
        ]
        rows = list(cases.measured(given, torch.device("cpu"), cases.QUICK))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert list(dict.fromkeys(seen)) == [2, 3]
    assert [row.threads for row in rows] == [2, None]


def test_a_point_that_was_measured_is_not_measured_again(script, case):
    cases, calls = script("_cases"), []
    given = case(lambda: calls.append(1))
    rows = []
    for row in cases.measured([given, given.point("B"), given], torch.device("cpu"), cases.QUICK):
        rows.append((row.along, len(calls)))
    assert [along for along, _ in rows] == [None, "B", None]
    assert rows[0][1] == rows[1][1] < rows[2][1]


@pytest.mark.parametrize(("seconds", "pairs"), [(1e-9, 15), (1.0, 8), (100.0, 3)])
def test_effort_is_as_many_pairs_as_fit(script, seconds, pairs):
    assert script("_cases").FULL.pairs(seconds) == pairs


def test_a_fresh_process_sees_the_peak_of_each_side(script):
    """Of a matrix of 1,024 x T floats that the loss of PML makes, and ours does not."""
    cases, losses = script("_cases"), script("deep_ranking_loss")
    sizes = {"B": 1024, "T": 64, "D": 8, "C": 4}
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
        "B 8, C 2, T 16",
        "B 12, C 3, T 24",
        "B 16, C 4, T 32",
    ]
