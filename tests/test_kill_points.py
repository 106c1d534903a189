"""SIGKILL at 25 points of a run, and a resume to the same bits after each: benchmarks/kill_points.py, briefly."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "kill_points.py"
PHASES = ("packing", "training", "checkpoint", "evaluation", "report")
POINTS = 25


@pytest.mark.skipif(sys.platform != "linux", reason="forks a process and looks at its threads")
def test_killed_run_resumes_to_the_same_bits_wherever_it_was(tmp_path):
    found = tmp_path / "found.json"
    process = subprocess.run(
        [sys.executable, SCRIPT, "--points", str(POINTS), "--json", found],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    content = json.loads(found.read_text())
    assert content["one_thread"]
    points = content["points"]
    assert Counter(point["phase"] for point in points) == dict.fromkeys(PHASES, POINTS // len(PHASES))
    assert len({point["at"] for point in points}) == POINTS
    assert all(point["killed"] and not point["different"] for point in points)
    assert {point["begun"] for point in points} == {True, False}  # some had nothing to go on from
