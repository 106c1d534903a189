"""A clock that is set while a run works: durations come from one that nobody sets, and nothing else asks for one."""

import ast
import itertools
import json
import os
import time
from pathlib import Path

import pytest

import dr_plugin
from dr_plugin.experiments.recipe import load_recipe
from dr_plugin.experiments.run import run_experiment

from .fault_cases import assert_same_run, write_recipe

SET_BY_PEOPLE = {"time.time", "time.time_ns", "time.localtime", "time.gmtime", "time.ctime", "datetime.now"}


def names(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node)
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            yield from (f"time.{alias.name}" for alias in node.names)


def test_package_asks_no_clock_that_is_set():
    found = {
        (str(path), name) for path in Path(dr_plugin.__file__).parent.rglob("*.py") for name in names(path)
    }
    used = {name for _, name in found if name.startswith("time.")}
    assert {"time.perf_counter", "time.monotonic"} <= used  # so that the search is seen to find
    assert not [(path, name) for path, name in found if any(name.endswith(clock) for clock in SET_BY_PEOPLE)]


@pytest.mark.parametrize("jump", [-1e6, 1e6])
def test_clock_that_jumps_changes_nothing(tmp_path, make_tiny_imagenet, monkeypatch, jump):
    """Nor does it matter that the images come from the future."""
    recipe = load_recipe(write_recipe(tmp_path, make_tiny_imagenet), ["limits.steps=3"])
    run_experiment(recipe, tmp_path / "whole", device="cpu")
    for path in (tmp_path / "data").rglob("*.JPEG"):
        os.utime(path, (time.time() + 1e8,) * 2)
    jumps = itertools.count()
    monkeypatch.setattr(time, "time", lambda: 1.7e9 + jump * next(jumps))
    run_experiment(recipe, tmp_path / "run", device="cpu")
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    times = [record["time_s"] for record in records]
    assert times == sorted(times)
    assert 0 <= times[0] <= times[-1] < 600
    assert 0 < json.loads((tmp_path / "run" / "metrics.json").read_text())["wall_time_s"] < 600
