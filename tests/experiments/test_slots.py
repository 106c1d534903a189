"""Slots: what a type may name, which arguments it may have, and what is built of it."""

import inspect
import math
import re
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from pytorch_metric_learning import distances, losses, miners, reducers
from torch import nn

from dr_plugin.experiments import families
from dr_plugin.experiments.families import KINDS, NotFoundError, find, names
from dr_plugin.experiments.problems import Problem
from dr_plugin.experiments.signatures import Argument, signature_of, why_not
from dr_plugin.experiments.slots import BuildError, Supply, plan
from dr_plugin.losses import CrossBatchMemory, DeepRankingLoss
from dr_plugin.miners import UniformTripletMiner
from dr_plugin.trunks import SmallConvNet

MINE = """
import sys
from pytorch_metric_learning.miners import BaseMiner
from torch.utils.data import Sampler

sys.calls = []

def function(*args, **kwargs):
    sys.calls.append("function")

class NoMiner:
    def __init__(self, *args, **kwargs):
        sys.calls.append("NoMiner")

class Miner(BaseMiner):
    def __init__(self, strength: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.strength = strength

class Careless(BaseMiner):
    def __init__(self, strength=1.0, **kwargs):
        super().__init__()
        self.kwargs = kwargs

class Free(Sampler):
    def __init__(self, **options):
        self.options = options

class Silent(BaseMiner):
    def __init__(self):
        raise AssertionError
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module ``mine`` to be named by dotted paths; it notes what is called in ``sys.calls``."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)


def problems_of(kind: str, slot: Any, supply: Supply | None = None) -> list[Problem]:
    problems: list[Problem] = []
    part = plan(kind, slot, ("slot",), supply or Supply(), problems)
    assert (part is None) == bool(problems)
    return problems


def built(kind: str, slot: Any, supply: Supply | None = None) -> Any:
    problems: list[Problem] = []
    part = plan(kind, slot, ("slot",), supply or Supply(), problems)
    assert part is not None, problems
    return part.build()


@pytest.mark.parametrize(
    ("kind", "name", "cls"),
    [
        ("miner", "UniformTripletMiner", UniformTripletMiner),
        ("miner", "TripletMarginMiner", miners.TripletMarginMiner),
        ("loss", "CrossBatchMemory", CrossBatchMemory),  # ours comes before PML's of this name
        ("loss", "MultipleLosses", losses.MultipleLosses),
        ("optimizer", "SGD", torch.optim.SGD),
        ("scheduler", "OneCycleLR", torch.optim.lr_scheduler.OneCycleLR),
        ("convnet", "SmallConvNet", SmallConvNet),
        ("sampler", "RandomSampler", torch.utils.data.RandomSampler),
        ("loss", "pytorch_metric_learning.losses.CrossBatchMemory", losses.CrossBatchMemory),
        ("trunk", "torch.nn.Linear", nn.Linear),
    ],
)
def test_find_gives_the_class(kind: str, name: str, cls: type) -> None:
    assert find(kind, name) is cls


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_concrete_classes_of_the_kind(kind: str) -> None:
    for name in names(kind):
        cls = find(kind, name)
        assert inspect.isclass(cls)
        assert issubclass(cls, KINDS[kind].bases)
        assert not name.startswith("_")


@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [
        (
            "miner",
            "UniformTripletMinr",
            r"got \"UniformTripletMinr\", expected one of HardQuadrupletMiner, RankedNegativeMiner, Reservoir",
        ),
        ("miner", "uniformtripletminer", r"did you mean UniformTripletMiner\?$"),
        ("miner", "TripletMarginLoss", "expected one of"),
        ("miner", "BaseMiner", "expected one of"),
        ("miner", "", "expected one of"),
        ("miner", "pytorch_metric_learning.miners.BaseMiner", "expected a class that derives from BaseMiner"),
        ("miner", "os.system", "a builtin_function_or_method, expected a class that derives from BaseMiner"),
        ("dataset", "subprocess.Popen", 'got "subprocess.Popen", expected a class that derives from Dataset'),
        ("optimizer", "builtins.eval", "expected a class that derives from Optimizer"),
        (
            "miner",
            "no_such_module.Miner",
            "can be imported; ModuleNotFoundError: No module named 'no_such_module'",
        ),
        ("miner", "torch.nn.Lineer", r"expected a class in torch.nn; did you mean Linear\?"),
        ("miner", ".Miner", "expected a dotted path such as package.module.Class"),
        ("miner", "os.path;x", "expected a dotted path such as package.module.Class"),
        ("miner", "mine.function", "a function, expected a class that derives from BaseMiner"),
        ("miner", "mine.NoMiner", "expected a class that derives from BaseMiner"),
        ("miner", "mine.Minr", r"expected a class in mine; did you mean Miner\?"),
    ],
)
def test_find_refuses_without_calling(kind: str, name: str, text: str, mine: None) -> None:
    with pytest.raises(NotFoundError, match=text):
        find(kind, name)
    assert getattr(sys, "calls", []) == []


@pytest.mark.parametrize("code", ["raise SystemExit(3)", "1 / 0", "import no_such_module", "def f(:"])
def test_find_of_a_module_that_fails_says_why(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing_module.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(NotFoundError, match=r"expected a module that can be imported; \w+: "):
        find("miner", "failing_module.Miner")


def test_find_imports_no_module_for_a_name_without_a_dot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bare_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(NotFoundError, match="expected one of"):
        find("miner", "bare_module")
    assert "bare_module" not in sys.modules


@pytest.mark.parametrize("kind", KINDS)
def test_typo_in_an_argument_is_found_in_every_class(kind: str) -> None:
    for name in names(kind):
        if name != "TuplesToWeightsSampler":  # hands any name on, but needs arguments that no recipe can give
            found = problems_of(kind, {"type": name, "no_such_argument": 1})
            assert ("slot", "no_such_argument") in [problem.key for problem in found], name


def test_typo_in_an_argument_is_found_in_a_class_that_would_swallow_it(mine: None) -> None:
    (problem,) = problems_of("miner", {"type": "mine.Careless", "strenth": 1})
    assert problem.key == ("slot", "strenth")


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # PML's LargeMarginSoftmaxLoss
@pytest.mark.parametrize("kind", ["miner", "distance", "reducer", "regularizer", "loss"])
def test_signature_agrees_with_the_constructor(kind: str) -> None:
    """The constructor takes every name that was collected and no other, where it can be called at all."""
    sizes = {
        "num_classes": 4,
        "embedding_size": 8,
        "loss": losses.TripletMarginLoss(),
        "centers_per_class": 2,
        "l": 8,
    }
    tried = 0
    for name in names(kind):
        cls, signature = find(kind, name), signature_of(find(kind, name))
        arguments = {key: value for key, value in sizes.items() if key in signature.arguments}
        try:
            cls(**arguments)
        except (TypeError, AssertionError):  # needs more than these
            continue
        tried += 1
        with pytest.raises(TypeError, match="no_such_argument"):
            cls(**arguments, no_such_argument=1)
        for key, argument in signature.arguments.items():
            if key not in arguments and argument.default is not inspect.Parameter.empty:
                message = ""
                try:
                    cls(**arguments, **{key: argument.default})
                except (TypeError, ValueError) as error:
                    message = str(error)
                # A class may fix, or forbid, what its base would take.
                assert message == "" or "multiple values" in message or "cannot use" in message
    assert tried >= len(names(kind)) * 0.6


@pytest.mark.parametrize(
    ("kind", "slot", "key", "text"),
    [
        (
            "loss",
            {"type": "TripletMarginLoss", "margn": 0.2},
            "margn",
            r"got 0.2, expected one of margin, .* margin\?$",
        ),
        ("loss", {"type": "TripletMarginLoss", "margin": "big"}, "margin", 'got "big", expected a number'),
        ("loss", {"type": "TripletMarginLoss", "margin": None}, "margin", "got null, expected a number"),
        ("loss", {"type": "TripletMarginLoss", "margin": math.nan}, "margin", "got NaN, expected a number"),
        ("loss", {"type": "TripletMarginLoss", "swap": "no"}, "swap", 'got "no", expected true or false'),
        (
            "loss",
            {"type": "TripletMarginLoss", "distance": "LpDistance"},
            "distance",
            r"expected \{type: Name, \.\.\.\}",
        ),
        (
            "loss",
            {"type": "TripletMarginLoss", "distance": {"type": 3}},
            "distance",
            r"expected \{type: Name, \.\.\.\}",
        ),
        ("loss", {"type": "TripletMarginLoss", "margin": {"type": "X"}}, "margin", "expected no slot"),
        ("loss", {"type": "MultipleLosses", "losses": []}, "losses", r"got \[\], expected \{type: Name"),
        (
            "loss",
            {"type": "MultipleLosses"},
            "losses",
            "got nothing, expected a value: MultipleLosses needs it",
        ),
        ("optimizer", {"type": "SGD", "nesterov": "no"}, "nesterov", 'got "no", expected true or false'),
        ("optimizer", {"type": "SGD", "lr": "1e-3"}, "lr", 'got "1e-3", expected a number'),
        (
            "optimizer",
            {"type": "SGD", "params": []},
            "params",
            r"got \[\], expected nothing: the run gives this",
        ),
        ("optimizer", {"type": "Adam", "betas": [0.9]}, "betas", r"got \[0.9\], expected"),
        ("convnet", {"type": "SmallConvNet", "channels": "32"}, "channels", 'got "32", expected a list'),
        ("convnet", {"type": "SmallConvNet", "channels": [32.5]}, "channels", "expected a whole number"),
        (
            "miner",
            {"type": "UniformTripletMiner", "triplets_per_query": 8.0},
            "triplets_per_query",
            "a whole number",
        ),
        (
            "miner",
            {"type": "UniformTripletMiner", "triplets_per_query": True},
            "triplets_per_query",
            "a whole number",
        ),
        (
            "miner",
            {"type": "UniformTripletMiner", "generator": 3},
            "generator",
            "the run gives this argument itself",
        ),
        (
            "sampler",
            {"type": "MPerClassSampler", "m": 4, "labels": [1]},
            "labels",
            "the run gives this argument itself",
        ),
        (
            "miner",
            {"type": "EmbeddingsAlreadyPackagedAsTriplets", "x": 1},
            "x",
            "expected one of distance, collect_stats",
        ),
        ("miner", {"type": "mine.Miner", "strenth": 2}, "strenth", r"did you mean strength\?"),
        ("miner", {"type": "mine.Miner", "strength": "2"}, "strength", 'got "2", expected a number'),
    ],
)
def test_wrong_argument_is_one_problem(
    kind: str, slot: dict[str, Any], key: str, text: str, mine: None
) -> None:
    supply = Supply(
        {"labels": torch.zeros(4), "params": [], "optimizer": None, "total_steps": 5, "max_lr": 0.1}
    )
    (problem,) = problems_of(kind, slot, supply)
    assert problem.key == ("slot", key)
    assert re.search(text, problem.text), problem.text


@pytest.mark.parametrize("slot", [None, 3, "SGD", [], {}, {"type": None}, {"lr": 0.1}])
def test_no_slot_at_all_is_one_problem(slot: Any) -> None:
    (problem,) = problems_of("optimizer", slot)
    assert problem.key == ("slot",)
    assert "expected {type: Name, ...} with a name such as" in problem.text


def test_problems_of_nested_slots_have_their_keys() -> None:
    slot = {
        "type": "MultipleLosses",
        "losses": [
            {"type": "ContrastiveLoss", "distance": {"type": "LpDistance", "powr": 2}},
            {"type": "ContrastivLoss"},
            3,
        ],
        "miners": {"a": {"type": "TripletMarginMiner", "margin": "x"}},
    }
    assert [problem.key for problem in problems_of("loss", slot)] == [
        ("slot", "losses", 0, "distance", "powr"),
        ("slot", "losses", 1, "type"),
        ("slot", "losses", 2),
        ("slot", "miners", "a", "margin"),
    ]


def test_build_nests_slots_of_every_form() -> None:
    loss = built(
        "loss",
        {
            "type": "MultipleLosses",
            "losses": {
                "near": {
                    "type": "DeepRankingLoss",
                    "gap": 0.5,
                    "distance": {"type": "LpDistance", "power": 2},
                    "reducer": {"type": "MultipleReducers", "reducers": {"loss": {"type": "SumReducer"}}},
                },
                "far": {"type": "ContrastiveLoss"},
            },
            "miners": {"far": {"type": "PairMarginMiner", "pos_margin": 0.1}},
            "weights": {"near": 1, "far": 2},
        },
    )
    assert isinstance(loss, losses.MultipleLosses)
    near = loss.losses["near"]
    assert isinstance(near, DeepRankingLoss)
    assert near.gap == 0.5
    assert isinstance(near.distance, distances.LpDistance)
    assert near.distance.power == 2
    assert isinstance(near.reducer.reducers["loss"], reducers.SumReducer)
    assert loss.miners["far"].pos_margin == 0.1


def test_supply_fills_what_is_not_given_also_in_nested_slots() -> None:
    supply = Supply({"embedding_size": 8, "num_classes": 5, "unused": 1})
    slot = {"type": "CrossBatchMemory", "memory_size": 16, "loss": {"type": "ContrastiveLoss"}}
    memory = built("loss", slot, supply)
    assert memory.embedding_memory.shape == (16, 8)
    proxies = built("loss", {"type": "MultipleLosses", "losses": [{"type": "SubCenterArcFaceLoss"}]}, supply)
    assert proxies.losses[0].W.shape == (8, 15)  # 3 centers a class


def test_supply_gives_way_to_the_recipe_but_for_what_binds() -> None:
    slot = {"type": "ProxyAnchorLoss", "num_classes": 7}
    loose = Supply({"num_classes": 5, "embedding_size": 8})
    assert built("loss", slot, loose).proxies.shape == (7, 8)
    binding = Supply(loose.values, {"num_classes": "the number of classes"})
    (problem,) = problems_of("loss", slot, binding)
    assert problem == Problem(
        ("slot", "num_classes"), "got 7, expected 5, the number of classes; leave it out"
    )
    assert problems_of("loss", slot | {"num_classes": 5}, binding) == []


@pytest.mark.parametrize(
    ("kind", "slot", "key", "text"),
    [
        (
            "loss",
            {"type": "DeepRankingLoss", "gap": -1},
            ("slot", "gap"),
            "got -1, expected a finite number above 0",
        ),
        (
            "loss",
            {"type": "AngularLoss", "distance": {"type": "CosineSimilarity"}},
            ("slot",),
            "AngularLoss refuses its "
            "arguments: AssertionError: AngularLoss requires the distance metric to be LpDistance",
        ),
        (
            "loss",
            {
                "type": "MultipleLosses",
                "losses": [
                    {"type": "ThresholdConsistentMarginLoss"},
                    {"type": "TripletMarginLoss", "distance": {"type": "LpDistance", "is_inverted": True}},
                ],
            },
            ("slot", "losses", 1, "distance"),
            "LpDistance refuses its arguments: AssertionError: assert not self.is_inverted",
        ),
        (
            "miner",
            {"type": "mine.Silent"},
            ("slot",),
            "Silent refuses its arguments: AssertionError: raise AssertionError",
        ),
        (
            "loss",
            {"type": "SubCenterArcFaceLoss"},
            ("slot",),
            "refuses its arguments: KeyError: 'num_classes'",
        ),
    ],
)
def test_build_turns_any_error_into_one_problem(
    kind: str, slot: Any, key: tuple[Any, ...], text: str, mine: None
) -> None:
    with pytest.raises(BuildError) as caught:
        built(kind, slot)
    assert caught.value.problem.key == key
    assert text in caught.value.problem.text


def test_class_of_the_user_that_takes_any_name_is_given_any_name(mine: None) -> None:
    assert built("sampler", {"type": "mine.Free", "free": [1]}).options == {"free": [1]}


def test_part_is_known_only_without_dotted_paths(mine: None) -> None:
    def known(slot: dict[str, Any]) -> bool:
        part = plan("loss", slot, (), Supply({"embedding_size": 8}), [])
        assert part is not None
        return part.known

    memory = {"type": "CrossBatchMemory", "loss": {"type": "ContrastiveLoss"}}
    assert known(memory)
    assert known(memory | {"miner": {"type": "TripletMarginMiner"}})
    assert not known(memory | {"miner": {"type": "mine.Miner"}})
    assert not known({"type": "pytorch_metric_learning.losses.ContrastiveLoss"})


@pytest.mark.parametrize(
    ("annotation", "value", "fits"),
    [
        (int, 3, True),
        (int, 3.0, False),
        (int, True, False),
        (float, 3, True),
        (float, False, False),
        (float, math.inf, True),
        (bool, 1, False),
        (str, 3, False),
        (int | None, None, True),
        (str | nn.Module, "resnet18", True),
        (str | nn.Module, 3, False),
        (nn.Module, "anything", True),
        (tuple[float, float], [0.9, 0.99], True),
        (tuple[float, float], [0.9], False),
        (tuple[float | torch.Tensor, ...], [1, 2.5], True),
        (list[int], 3, False),
        (dict[str, int], {"a": 1}, True),
        (dict[str, int], {"a": "1"}, False),
        (Literal["cos", "linear"], "cos", True),
        (Literal["cos", "linear"], "sin", False),
    ],
)
def test_why_not_follows_the_annotation(annotation: Any, value: Any, fits: bool) -> None:
    empty = inspect.Parameter.empty
    assert (why_not(Argument(empty, annotation, True), value) is None) == fits


def test_find_searches_only_the_kind_s_own_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    imported: list[str] = []
    original = families.importlib.import_module
    monkeypatch.setattr(
        families.importlib, "import_module", lambda name: (imported.append(name), original(name))[1]
    )
    find("miner", "HDCMiner")
    assert imported == ["dr_plugin.miners", "pytorch_metric_learning.miners"]
