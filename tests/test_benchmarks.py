"""The benchmark suite at tiny sizes: every row is there and finite, table and JSON agree; its figures mean nothing."""

import gc
import importlib
import json
import math
import re
from pathlib import Path

import pytest

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
        ("tiny_uniform_cpu, softmax stage, eager", "the same step, synthetic data on the device"),
        ("tiny_uniform_cpu, ranking stage, eager", "the same step, synthetic data on the device"),
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
# What grows, and the sizes that grow with the one it is drawn over: B, batch size; C, classes; N, data set size.
CURVES = {
    ("PackedImages + BatchAugment, pixel shift, flip", "N"),
    ("TripletStream", "N"),
    ("TripletStream", "C"),
    ("TripletStream", "B"),
    ("RankingTrainer, float32", "B"),
    ("UniformTripletMiner", "B, C, T"),
    ("UniformTripletMiner", "C"),
    ("ReservoirTripletMiner, current embeddings", "B, C, T"),
    ("ReservoirTripletMiner, current embeddings", "C"),
    ("ReservoirTripletMiner, current embeddings, buffers of 2", "B, C, T"),
    ("ReservoirTripletMiner, current embeddings, buffers of 2", "C"),
    ("ReservoirTripletMiner, external relevance, 20% out of class", "B, C, T"),
    ("ReservoirTripletMiner, external relevance, 20% out of class", "C"),
    ("HardQuadrupletMiner, one quadruplet", "B, C"),
    ("HardQuadrupletMiner, one quadruplet", "C"),
    ("RankedNegativeMiner", "B, C"),
    ("RankedNegativeMiner", "C"),
    ("UniformTripletSampler", "N"),
    ("UniformTripletSampler", "C"),
    ("OfflineTripletSampler", "T"),
    ("DistributedBatchSampler over UniformTripletSampler", "N"),
    ("DistributedBatchSampler over UniformTripletSampler", "C"),
    ("ReservoirTripletSampler, capacity=None", "N"),
    ("ReservoirTripletSampler, capacity=None", "C"),
    ("ReservoirTripletSampler, bounded", "N"),
    ("ReservoirTripletSampler, bounded", "C"),
    ("DeepRankingLoss", "B, T"),
    ("DeepRankingLoss", "C"),
    ("PDDMLoss with HardQuadrupletMiner, one quadruplet", "B, C"),
    ("PDDMLoss with HardQuadrupletMiner, one quadruplet", "C"),
    ("LRMLLoss", "B, C"),
    ("LRMLLoss", "C"),
    ("ReservoirMemory, all pairs, by relevance", "B"),
    ("ReservoirMemory, all pairs, by relevance", "C"),
    ("nearest", "N"),
    ("RankingAccuracyCalculator, P@k", "N"),
    ("ClassReservoirs.extend", "N"),
    ("ClassReservoirs.extend", "C"),
    ("ClassReservoirs.draw", "draws"),
    ("ClassReservoirs.draw", "N"),
    ("ClassReservoirs.draw", "C"),
    ("RelevantTriplets.draw", "N"),
    ("RelevantTriplets.draw", "C"),
}
WITH_PEAK = {"losses", "evaluation"}
ONE_THREAD = {
    "TripletStream",
    "ClassReservoirs",
    "WeightedReservoir",
    "ReservoirTripletSampler",
    "RelevantTriplets",
}


@pytest.fixture
def script(monkeypatch):
    """Import a file of the benchmarks, as it is when it runs as a script."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


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
        with_peak = row["group"] in WITH_PEAK and row["along"] is None
        assert [row["peak_bytes"] is None, row["their_peak_bytes"] is None] == [not with_peak] * 2, row
        assert row["threads"] == (1 if re.split(r"\W", row["what"])[0] in ONE_THREAD else None)
    along = [(curve["what"], ", ".join([curve["along"], *curve["together"]])) for curve in content["growth"]]
    assert sorted(along) == sorted(CURVES)
    for curve in content["growth"]:
        assert curve["error"] is None
        assert math.isfinite(curve["exponent"] + curve["their_exponent_error"])
    assert_same(ratios, (tmp_path / "table.md").read_text())
    assert capsys.readouterr().out.startswith("# Benchmarks")
    assert [len(content["load_average"][when]) for when in ("start", "end")] == [3, 3]
    assert f"{content['load_average']['end'][0]:.2f}" in (tmp_path / "table.md").read_text()
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
            sizes = row["sizes"] | ({} if row["threads"] is None else {"threads": row["threads"]})
            assert cells[1] == ", ".join(f"{name} {size:,}" for name, size in sizes.items())
            shown = [float(figure.replace(",", "")) for figure in (cells[5], *cells[6].split(" to "))]
            assert shown == pytest.approx([row["ratio"], *row["quartiles"]], rel=0.06)
            assert (cells[7] == "-") == (row["peak_bytes"] is None)
