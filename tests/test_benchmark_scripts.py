"""Single scripts of the benchmarks: what they set side by side, and that it is what they say."""

import importlib
import time
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SMALL = ["stages.softmax.batch_size=8", "stages.ranking.batch_size=20", "data.image_size=32"]
SMALL += ["data.classes=4", "trunk.convnet.width=8"]


@pytest.fixture
def script(monkeypatch):
    """Import a file of the benchmarks, as it is when it runs as a script."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


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
    overrides = [word for override in SMALL for word in ("--set", override)]
    profile.main(["--stage", stage, "--steps", "2", "--device", "cpu", "--operators", "4", *overrides])
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    rows = {line[0]: line for line in lines if len(line) == 4 and line[3].endswith("%")}
    never = "mine" if stage == "softmax" else "averaged weights"  # which that stage has not
    assert {name for name in profile.OWNERS if float(rows[name][2]) == 0} == {never}
    assert rows["averaged weights"][1] == profile.OURS
    assert sum(float(rows[name][3].rstrip("%")) for name in profile.OWNERS) == pytest.approx(100, abs=1)
    assert sum(line[0].startswith("aten::") for line in lines) >= 2


def test_profile_of_an_unknown_stage_is_refused(script):
    with pytest.raises(ValueError, match="--stage: got rank, expected one of softmax, ranking"):
        script("profile_step").main(["--stage", "rank", "--device", "cpu"])


def test_a_short_epoch_is_logged_as_often_as_one_of_the_whole_data(script, monkeypatch):
    """4 classes of 490 images, 10 apart for the selection, in batches of 20: 98 steps, of which every fourth."""
    profile, logged = script("profile_step"), []
    monkeypatch.setattr(
        profile.StageRun, "_log", lambda run, trainer: logged.append(trainer.steps_done), raising=True
    )
    trainer = profile.built("tiny_uniform_cpu", "ranking", SMALL, 10, torch.device("cpu"))
    profile.epoch(trainer, torch.device("cpu"))
    assert logged == [4, 8, 10]


@pytest.mark.parametrize("stage", ["ranking", "softmax"])
def test_synthetic_data_is_trained_on_and_neither_drawn_nor_read(script, stage, monkeypatch):
    profile, synthetic = script("profile_step"), script("synthetic_step")
    device, reads = torch.device("cpu"), []
    read = profile.PackedImages.batch
    monkeypatch.setattr(
        profile.PackedImages, "batch", lambda *given, **options: reads.append(1) or read(*given, **options)
    )
    trainer = profile.built("tiny_uniform_cpu", stage, SMALL, 3, device)
    synthetic.freeze(trainer, device)
    weights = [parameter.clone() for parameter in trainer.models["trunk"].parameters()]
    first = trainer.get_batch()
    assert first[0].dtype == torch.float32
    assert first[1].device.type == "cpu"
    reads.clear()
    monkeypatch.setattr(type(trainer.order), "batches", None)
    monkeypatch.setattr(type(trainer.augment), "__call__", None)
    profile.epoch(trainer, device)
    assert not reads
    assert trainer.steps_done == 6
    assert all(a is b for a, b in zip(trainer.get_batch(), first, strict=True))
    trained = zip(weights, trainer.models["trunk"].parameters(), strict=True)
    assert any(not torch.equal(before, after) for before, after in trained)


def test_synthetic_steps_are_of_each_device_s_recipe(script):
    """Compiled on a GPU only, where it is made for."""
    synthetic = script("synthetic_step")
    names = {(case.on, case.what) for case in synthetic.cases(**synthetic.FULL)}
    both = [(f"{stage} stage", how) for stage in ("softmax", "ranking") for how in ("eager", "compiled")]
    assert names == {("cuda", f"tiny_uniform, {stage}, {how}") for stage, how in both} | {
        ("cpu", f"tiny_uniform_cpu, {stage}, eager") for stage, how in both
    }


def test_evaluation_on_a_gpu_stays_on_it(script):
    """No row sets the GPU beside faiss, which is made for the CPU."""
    evaluation = script("evaluation")
    names = [case.name for case in evaluation.cases(**evaluation.FULL) if case.on in (None, "cuda")]
    assert sum("CustomKNN" in name for name in names) >= 2
    assert not [name for name in names if "faiss" in name.lower()]


def test_their_neighbours_on_a_gpu_are_the_same(script):
    evaluation = script("evaluation")
    query, gallery = evaluation.unit_norm(5, 8, 0), evaluation.unit_norm(40, 8, 1)
    wanted = evaluation.nearest(query, gallery, 3)[1]
    assert torch.equal(evaluation.custom_knn()(query, 3, gallery)[1], wanted)


def test_the_loss_is_measured_at_the_recipes_batches(script):
    loss = script("deep_ranking_loss")
    rows = [case.sizes for case in loss.cases(**loss.FULL) if case.along is None]
    shapes = {(sizes["B"], sizes["T"], sizes["D"]) for sizes in rows}
    assert shapes >= {(512, 4096, 128), (512, 4096, 512), (100, 800, 128)}


def test_pml_s_trainer_reads_the_same_images_from_memory(script, monkeypatch):
    trainer = script("trainer")
    data, seen = trainer.packed(16, 32), []
    run = trainer.pml_trainer(data, 8, "float32", torch.device("cpu"))
    monkeypatch.setattr(trainer.PackedImages, "__getitem__", None)
    monkeypatch.setattr(
        trainer.BatchAugment,
        "__call__",
        lambda self, images, *given, **options: seen.append(images) or images.float(),
    )
    run()
    assert sorted(image.sum().item() for image in torch.cat(seen)) == sorted(
        image.sum().item() for image in data.batch(range(16))[0]
    )
