"""Recipes made into objects, and the checks that come before."""

import importlib.util
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_metric_learning.samplers import MPerClassSampler
from torch import nn

from dr_plugin.datasets import Digits, TinyImageNet
from dr_plugin.experiments import build
from dr_plugin.experiments.check import check
from dr_plugin.experiments.problems import dotted
from dr_plugin.experiments.recipe import RankingStage, Recipe, RecipeError, load_recipe
from dr_plugin.losses import CrossBatchMemory
from dr_plugin.miners import UniformTripletMiner
from dr_plugin.samplers import UniformTripletSampler
from dr_plugin.trunks import DeepRankingTrunk, SmallConvNet

LABELS = torch.arange(5).repeat_interleave(12)  # (60,)

MINE = """
import torch
from torch import nn
from torch.utils.data import Dataset

class Counted(Dataset):
    classes = ["a", "b"]

    def __init__(self, root, train=True):
        self.root, self.train = root, train
        self.targets = torch.tensor([0, 1, 1])

class Unlabelled(Dataset):
    def __init__(self, split):
        self.split = split

class NeverBuilt(nn.Module):
    def __init__(self):
        raise RuntimeError("built too early")
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module ``mine`` for dotted paths."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)


def recipe_with(**changes: Any) -> Recipe:
    """A small recipe of one ranking stage; ``changes`` go into the stage, or into the recipe "
    "where it has the key."""
    stage = {
        "name": "ranking",
        "epochs": 1,
        "batch_size": 12,
        "loss": {"type": "DeepRankingLoss"},
        "optimizer": {"type": "SGD", "lr": 0.1},
    }
    recipe: dict[str, Any] = {
        "name": "small",
        "seed": 11,
        "data": {"dataset": {"type": "Digits"}, "image_size": 8},
        "trunk": {"type": "DeepRankingTrunk", "convnet": {"type": "SmallConvNet"}, "embedding_size": 6},
        "stages": [stage],
    }
    for key, value in changes.items():
        (recipe if key in recipe else stage)[key] = value
    return Recipe.model_validate(recipe)


def stage_of(recipe: Recipe) -> RankingStage:
    stage = recipe.stages[0]
    assert isinstance(stage, RankingStage)
    return stage


def faults(**changes: Any) -> list[str]:
    return [f"{dotted(problem.key)}: {problem.text}" for problem in check(recipe_with(**changes))]


def optimizer(lr: float = 0.1, groups: int = 1) -> torch.optim.SGD:
    return torch.optim.SGD(
        [{"params": [nn.Parameter(torch.zeros(2))], "lr": lr * (i + 1)} for i in range(groups)]
    )


# Building


def test_build_dataset_gives_both_splits() -> None:
    recipe = recipe_with()
    train, val = (build.build_dataset(recipe, split) for split in ("train", "val"))
    assert isinstance(train, Digits)
    assert isinstance(val, Digits)
    assert len(train) > len(val) > 0
    assert train.split == "train"
    assert val.split == "val"


def test_build_dataset_of_another_family_has_our_attributes(mine: None) -> None:
    recipe = recipe_with(data={"dataset": {"type": "mine.Counted", "root": "x"}, "image_size": 8})
    train, val = (build.build_dataset(recipe, split) for split in ("train", "val"))
    assert (train.train, val.train) == (True, False)  # type: ignore[attr-defined]
    assert train.labels == [0, 1, 1]  # type: ignore[attr-defined]
    assert train.class_ids == train.class_names == ["a", "b"]  # type: ignore[attr-defined]


def test_build_dataset_asks_pml_for_its_test_split() -> None:
    recipe = recipe_with(data={"dataset": {"type": "CUB", "root": "x"}, "image_size": 8})
    assert build.dataset_supply(recipe.data.dataset, "train").values["split"] == "train"
    assert build.dataset_supply(recipe.data.dataset, "val").values["split"] == "test"


def test_build_dataset_gives_progress_to_a_data_set_that_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def missing(self: TinyImageNet, progress: Any = None) -> None:
        given.append(progress)
        raise ValueError("no network")

    def progress(task: str, done: int, total: int | None) -> None: ...

    monkeypatch.setattr(TinyImageNet, "download_and_remove", missing)
    slot = {"type": "TinyImageNet", "root": "x", "download": True}
    recipe = recipe_with(data={"dataset": slot, "image_size": 8})
    with pytest.raises(RecipeError, match="no network"):
        build.build_dataset(recipe, "train", progress)
    assert given == [progress]


def test_build_dataset_without_labels_raises(mine: None) -> None:
    recipe = recipe_with(data={"dataset": {"type": "mine.Unlabelled"}, "image_size": 8})
    with pytest.raises(RecipeError, match="has neither labels nor targets, expected a label an image"):
        build.build_dataset(recipe, "train")


def test_build_trunk_takes_the_size_of_the_images() -> None:
    trunk = build.build_trunk(recipe_with())
    assert isinstance(trunk, DeepRankingTrunk)
    assert isinstance(trunk.convnet, SmallConvNet)
    assert trunk.input_size == 8
    assert trunk(torch.zeros(2, 3, 8, 8)).shape == (2, 6)


def test_build_sampler_of_pml_is_as_long_as_the_data() -> None:
    recipe = recipe_with(sampler={"type": "MPerClassSampler", "m": 4})
    sampler = build.build_sampler(stage_of(recipe), LABELS, recipe)
    assert isinstance(sampler, MPerClassSampler)
    assert (len(sampler), sampler.batch_size) == (60, 12)
    own = recipe_with(sampler={"type": "MPerClassSampler", "m": 4, "length_before_new_iter": 24})
    assert len(build.build_sampler(stage_of(own), LABELS, own)) == 24  # type: ignore[arg-type]


def test_build_sampler_of_ours_takes_batch_size_and_seed() -> None:
    recipe = recipe_with(sampler={"type": "UniformTripletSampler"})
    sampler = build.build_sampler(stage_of(recipe), LABELS, recipe)
    assert isinstance(sampler, UniformTripletSampler)
    assert (sampler.batch_size, sampler.seed) == (12, 11)
    assert list(sampler) == list(UniformTripletSampler(LABELS, batch_size=12, seed=11))


def test_build_sampler_of_torch_draws_from_the_seed() -> None:
    recipe = recipe_with(sampler={"type": "RandomSampler"})
    orders = [list(build.build_sampler(stage_of(recipe), LABELS, recipe)) for _ in range(2)]  # type: ignore[arg-type]
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == list(range(60))


def test_build_miner_takes_the_seed_unless_it_has_one() -> None:
    recipe = recipe_with(miner={"type": "UniformTripletMiner", "triplets_per_query": 2})
    own = recipe_with(miner={"type": "UniformTripletMiner", "triplets_per_query": 2, "seed": 5})
    mined = []
    for each in (recipe, own):
        miner = build.build_miner(stage_of(each), each)
        assert isinstance(miner, UniformTripletMiner)
        mined.append(torch.stack(miner(torch.zeros(60, 2), LABELS)))
    for found, seed in zip(mined, (11, 5), strict=True):
        expected = UniformTripletMiner(2, seed=seed)(torch.zeros(60, 2), LABELS)
        assert torch.equal(found, torch.stack(expected))


def test_build_leaves_out_what_the_recipe_leaves_out() -> None:
    recipe = recipe_with()
    assert build.build_sampler(stage_of(recipe), LABELS, recipe) is None
    assert build.build_miner(stage_of(recipe), recipe) is None


def test_build_loss_takes_the_run_s_sizes() -> None:
    proxies = build.build_loss(stage_of(recipe_with(loss={"type": "ProxyAnchorLoss"})), 5, 6)
    assert proxies.proxies.shape == (5, 6)
    slot = {"type": "CrossBatchMemory", "memory_size": 20, "loss": {"type": "DeepRankingLoss"}}
    memory = build.build_loss(stage_of(recipe_with(loss=slot)), num_classes=5, embedding_size=6)
    assert isinstance(memory, CrossBatchMemory)
    assert memory.embedding_memory.shape == (20, 6)


def test_build_loss_with_another_size_raises() -> None:
    stage = stage_of(recipe_with(loss={"type": "ProxyAnchorLoss", "num_classes": 7}))
    with pytest.raises(
        RecipeError, match=r"^ProxyAnchorLoss\.num_classes: got 7, expected 5, the number of classes"
    ):
        build.build_loss(stage, num_classes=5, embedding_size=6)


def test_build_optimizer_takes_the_parameters() -> None:
    model = nn.Linear(2, 2)
    built = build.build_optimizer(stage_of(recipe_with()).optimizer, model.parameters())
    assert isinstance(built, torch.optim.SGD)
    assert built.param_groups[0]["params"] == list(model.parameters())
    assert built.param_groups[0]["lr"] == 0.1


def scheduler(slot: dict[str, Any], steps: int, groups: int = 1) -> Any:
    recipe_slot = stage_of(recipe_with(scheduler=slot)).scheduler
    assert recipe_slot is not None
    return build.build_scheduler(recipe_slot, optimizer(groups=groups), steps)


def rates(built: Any, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(built.optimizer.param_groups[0]["lr"])
        built.optimizer.step()
        built.step()
    return found


def test_build_scheduler_spans_the_stage() -> None:
    one_cycle = scheduler({"type": "OneCycleLR"}, 40, groups=2)
    assert [group["max_lr"] for group in one_cycle.optimizer.param_groups] == [0.1, 0.2]
    found = rates(one_cycle, 40)
    assert max(found) == pytest.approx(0.1)
    assert found[-1] < 1e-5
    cosine = rates(scheduler({"type": "CosineAnnealingLR"}, 40), 40)
    assert cosine[0] == 0.1
    assert cosine[20] == pytest.approx(0.05)


def test_build_scheduler_keeps_the_recipe_s_own_length() -> None:
    assert scheduler({"type": "OneCycleLR", "epochs": 5, "steps_per_epoch": 10}, 40).total_steps == 50
    assert scheduler({"type": "CosineAnnealingLR", "T_max": 10}, 40).T_max == 10


@pytest.mark.parametrize("given", [{"total_steps": 39}, {"epochs": 3, "steps_per_epoch": 13}])
def test_build_scheduler_that_would_end_too_early_raises(given: dict[str, int]) -> None:
    with pytest.raises(RecipeError, match="got a schedule of 39 steps, expected at least the stage's 40"):
        scheduler({"type": "OneCycleLR", **given}, 40)


def test_build_scheduler_of_schedulers() -> None:
    slot = {
        "type": "SequentialLR",
        "schedulers": [{"type": "LinearLR", "total_iters": 4}, {"type": "CosineAnnealingLR"}],
        "milestones": [4],
    }
    assert check(recipe_with(scheduler=slot)) == []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's SequentialLR warns of itself
        found = rates(scheduler(slot, 40), 40)
    assert found[0] == pytest.approx(0.1 / 3)
    assert max(found) == pytest.approx(0.1)
    assert found[-1] < 0.05


def test_build_error_names_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("quickstart", ["stages.ranking.sampler={type: MPerClassSampler, m: 12}"])
    stage = stage_of(recipe)
    with pytest.raises(RecipeError) as caught:
        build.build_sampler(stage, torch.zeros(500, dtype=torch.long), recipe)
    assert caught.value.lines == [
        "--set stages.ranking.sampler={type: MPerClassSampler, m: 12}: stages[0].sampler: "
        "MPerClassSampler refuses "
        "its arguments: AssertionError: m * (number of unique labels) must be >= batch_size"
    ]


# Checking


def test_check_of_a_good_recipe_finds_nothing() -> None:
    miner = {"type": "EmbeddingsAlreadyPackagedAsTriplets"}
    assert check(recipe_with()) == []
    assert check(recipe_with(miner=miner, sampler={"type": "UniformTripletSampler"})) == []
    assert (
        check(recipe_with(miner=miner, sampler={"type": "FixedSetOfTriplets", "num_triplets": 10**9})) == []
    )
    assert check(recipe_with(loss={"type": "ProxyAnchorLoss"}, loss_optimizer={"type": "Adam"})) == []
    assert check(recipe_with(loss={"type": "ProxyAnchorLoss"})) == []


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"batch_size": 1}, "stages[0].batch_size: got 1, expected at least 2: one image has no pair"),
        (
            {"sampler": {"type": "MPerClassSampler", "m": 5}},
            "stages[0].sampler: MPerClassSampler refuses its "
            "arguments: AssertionError: m_per_class must divide batch_size without any remainder",
        ),
        (
            {"sampler": {"type": "UniformTripletSampler"}, "batch_size": 14},
            "stages[0].sampler: UniformTripletSampler refuses its arguments: batch_size: got "
            "14, expected a multiple of 3 "
            "(query, positive, negative)",
        ),
        (
            {"miner": {"type": "EmbeddingsAlreadyPackagedAsTriplets"}},
            "stages[0].sampler: got null, expected a sampler of triplets such as UniformTripletSampler, as the "
            "miner asks for",
        ),
        (
            {
                "miner": {"type": "EmbeddingsAlreadyPackagedAsTriplets"},
                "sampler": {"type": "MPerClassSampler", "m": 4},
            },
            'stages[0].sampler: got "MPerClassSampler", expected a sampler of triplets such as '
            "UniformTripletSampler, as the miner asks for",
        ),
        (
            {
                "miner": {"type": "EmbeddingsAlreadyPackagedAsTriplets"},
                "sampler": {"type": "FixedSetOfTriplets", "num_triplets": 9},
                "batch_size": 10,
            },
            "stages[0].batch_size: got 10, expected a multiple of 3: the batch is packaged as triplets",
        ),
        (
            {"loss_optimizer": {"type": "SGD"}},
            "stages[0].loss_optimizer: got a slot, expected null: DeepRankingLoss has no weights to train",
        ),
        (
            {"loss": {"type": "ProxyAnchorLoss", "embedding_size": 7}},
            "stages[0].loss.embedding_size: got 7, expected 6, the trunk's embedding_size; leave it out",
        ),
        (
            {"optimizer": {"type": "LBFGS"}},
            'stages[0].optimizer.type: got "LBFGS", whose step needs closure, expected one that '
            "needs nothing",
        ),
        (
            {"scheduler": {"type": "ReduceLROnPlateau"}},
            'stages[0].scheduler.type: got "ReduceLROnPlateau", whose step '
            "needs metrics, expected one that needs nothing",
        ),
        (
            {"optimizer": {"type": "Adagrad"}, "scheduler": {"type": "OneCycleLR"}},
            "stages[0].scheduler: OneCycleLR "
            "refuses its arguments: optimizer must support momentum or beta1 with "
            "`cycle_momentum` option enabled",
        ),
        (
            {"trunk": {"type": "DeepRankingTrunk", "input_size": 9}},
            "trunk.input_size: got 9, expected 8, as data.image_size; leave it out",
        ),
        (
            {
                "trunk": {
                    "type": "DeepRankingTrunk",
                    "weights": "imagenet",
                    "convnet": "resnet18",
                    "convnet_stem": "small",
                }
            },
            'trunk.weights: got "imagenet" beside another convnet_stem, expected null or a '
            "file: ImageNet weights are of "
            "the standard stem",
        ),
        (
            {"trunk": {"type": "DeepRankingTrunk", "weights": "missing.pt", "convnet": "resnet18"}},
            "trunk.weights: got 'missing.pt', which is no file; expected 'imagenet' or a local file",
        ),
        (
            {"data": {"dataset": {"type": "ClassFolder", "root": "x"}, "image_size": 8}},
            "did you mean ClassFolders?",
        ),
        (
            {"data": {"dataset": {"type": "ImageFolder", "root": "x"}, "image_size": 8}},
            'data.dataset.type: got "ImageFolder", which has no argument split or train, expected a data set that '
            "gives train and val apart",
        ),
        (
            {"optimizer": {"type": "SDG"}, "scheduler": {"type": "OneCycleLR", "pct": 0.1}},
            "stages[0].scheduler.pct: got 0.1, expected one of",
        ),
        (
            {"data": {"dataset": {"type": "ClassFolders"}, "image_size": 8}},
            "data.dataset.root: got nothing, expected a value: ClassFolders needs it",
        ),
    ],
)
def test_check_finds_what_does_not_fit(changes: dict[str, Any], line: str) -> None:
    assert any(line in fault for fault in faults(**changes)), faults(**changes)


def test_check_knows_the_number_of_classes_where_the_recipe_gives_it() -> None:
    data = {"dataset": {"type": "Digits"}, "image_size": 8, "classes": ["1", "2"]}
    (fault,) = faults(data=data, sampler={"type": "MPerClassSampler", "m": 4})
    assert "m * (number of unique labels) must be >= batch_size" in fault
    (fault,) = faults(data=data, loss={"type": "ProxyAnchorLoss", "num_classes": 3})
    assert fault == "stages[0].loss.num_classes: got 3, expected 2, the number of classes; leave it out"


def test_check_of_a_sampler_takes_the_largest_batch() -> None:
    data = {"dataset": {"type": "Digits"}, "image_size": 8, "classes": 100_000}
    assert faults(data=data, sampler={"type": "MPerClassSampler", "m": 4}, batch_size=65_536) == []


def test_check_of_softmax_asks_for_a_convnet() -> None:
    stage = {"name": "softmax", "epochs": 1, "batch_size": 4, "optimizer": {"type": "SGD"}}
    trunk = {"type": "SmallConvNet"}
    assert faults(trunk=trunk, stages=[stage]) == [
        'stages[0].features: got "convnet", which SmallConvNet lacks, expected embedding'
    ]
    assert faults(trunk=trunk, stages=[stage | {"features": "embedding"}]) == []


def test_check_calls_no_class_of_a_dotted_path_and_no_data_set(mine: None, tmp_path: Path) -> None:
    missing = {"dataset": {"type": "TinyImageNet", "root": str(tmp_path / "missing")}, "image_size": 8}
    assert check(recipe_with(trunk={"type": "mine.NeverBuilt"}, data=missing)) == []
    with pytest.raises(RecipeError, match="NeverBuilt refuses its arguments: RuntimeError: built too early"):
        build.build_trunk(recipe_with(trunk={"type": "mine.NeverBuilt"}))


def test_check_loads_no_imagenet_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("fetched")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fail)
    trunk = {"type": "DeepRankingTrunk", "convnet": "resnet18", "weights": "imagenet"}
    assert check(recipe_with(trunk=trunk, data={"dataset": {"type": "Digits"}, "image_size": 64})) == []


def test_check_reads_a_local_file_of_weights(tmp_path: Path) -> None:
    file = tmp_path / "convnet.pt"
    torch.save(SmallConvNet().state_dict(), file)
    trunk = {"type": "DeepRankingTrunk", "weights": str(file), "convnet": {"type": "SmallConvNet"}}
    assert faults(trunk=trunk) == []
    (fault,) = faults(trunk=trunk | {"convnet": {"type": "SmallConvNet", "channels": [32, 65]}})
    assert fault.startswith("trunk.weights: ")
    assert "wrong shape" in fault


def test_check_allocates_no_trunk() -> None:
    huge = {"type": "DeepRankingTrunk", "convnet": {"type": "SmallConvNet"}, "embedding_size": 2**31 - 1}
    assert faults(trunk=huge) == []  # terabytes, had it been built


def test_check_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    assert check(recipe_with(loss={"type": "ProxyAnchorLoss"})) == []
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("package", "change", "line"),
    [
        (
            "tensorboard",
            {"tensorboard": True},
            "tensorboard: got true, expected false, or TensorBoard installed",
        ),
        (
            "faiss",
            {"evaluation": {"backend": "faiss"}},
            'evaluation.backend: got "faiss", expected torch, or faiss installed',
        ),
    ],
)
def test_check_package_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, package: str, change: dict[str, Any], line: str
) -> None:
    recipe = Recipe.model_validate({**recipe_with().model_dump(), **change})
    assert check(recipe) == []
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "dr_plugin.experiments.check.find_spec", lambda name: None if name == package else find_spec(name)
    )
    (problem,) = check(recipe)
    assert f"{dotted(problem.key)}: {problem.text}".startswith(line)
