"""From a slot's ``type`` to a class: our family, then PML's or torch's of that kind, else a dotted path."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

from pytorch_metric_learning.distances import BaseDistance
from pytorch_metric_learning.losses import BaseLossWrapper, BaseMetricLossFunction, MultipleLosses
from pytorch_metric_learning.miners import BaseMiner
from pytorch_metric_learning.reducers import BaseReducer
from pytorch_metric_learning.regularizers import BaseRegularizer
from sklearn.base import TransformerMixin
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset, IterableDataset, Sampler

from dr_plugin.triplets import Relevance

from .problems import got, nearest, one_of


@dataclass(frozen=True)
class Kind:
    """What a slot may hold.

    Attributes:
        bases: A class named in a slot has to derive from one of these.
        modules: Where names are looked up, in this order.
        supplied: Arguments that only the run can give; a recipe may not.
        described: In place of the bases' names, where these would tell a recipe's reader nothing.
    """

    bases: tuple[type, ...]
    modules: tuple[str, ...] = ()
    supplied: frozenset[str] = frozenset()
    described: str | None = None


@runtime_checkable
class ImageRelevance(Relevance, Protocol):
    """A relevance that is made from a data set's images, and so can be named in a recipe."""

    def fit(
        self, images: Any, labels: Any, *, progress: Callable[[str, int, int | None], None] | None = None
    ) -> Any:
        """Learn or compute what is needed of the images; gives itself, a relevance over them."""


def _pml(base: tuple[type, ...], family: str, *ours: str, supplied: frozenset[str] = frozenset()) -> Kind:
    return Kind(base, (*ours, f"pytorch_metric_learning.{family}"), supplied)


_GENERATOR = frozenset({"generator"})
KINDS = {
    "dataset": Kind(
        (Dataset,),
        ("dr_plugin.datasets", "pytorch_metric_learning.datasets", "torchvision.datasets"),
        frozenset({"split", "train", "transform", "target_transform", "progress"}),
    ),
    "relevance": Kind(
        (ImageRelevance,),
        ("dr_plugin.relevance",),
        frozenset({"cache"}),
        "a class with the methods fit(images, labels, progress=), pairs(i, j), total(i) and __len__",
    ),
    "feature": Kind((TransformerMixin,), ("dr_plugin.relevance.features",)),
    "stream": Kind(
        (IterableDataset,),
        ("dr_plugin.datasets",),
        frozenset({"source", "batch_size", "pair_relevance", "rank", "world_size"}),
    ),
    "trunk": Kind((nn.Module,), ("dr_plugin.trunks",)),
    "convnet": Kind((nn.Module,), ("dr_plugin.trunks",)),
    "sampler": Kind(
        (Sampler,),
        ("dr_plugin.samplers", "pytorch_metric_learning.samplers", "torch.utils.data"),
        frozenset({"labels", "data_source", "batch_size", "generator"}),
    ),
    "miner": _pml((BaseMiner,), "miners", "dr_plugin.miners", supplied=_GENERATOR),
    "loss": _pml((BaseMetricLossFunction, BaseLossWrapper, MultipleLosses), "losses", "dr_plugin.losses"),
    "distance": _pml((BaseDistance,), "distances"),
    "reducer": _pml((BaseReducer,), "reducers"),
    "regularizer": _pml((BaseRegularizer,), "regularizers"),
    "optimizer": Kind((Optimizer,), ("torch.optim",), frozenset({"params"})),
    "scheduler": Kind((LRScheduler,), ("torch.optim.lr_scheduler",), frozenset({"optimizer"})),
}

# Arguments that are slots themselves, or lists or mappings of slots.
NESTED = {
    "convnet": "convnet",
    "distance": "distance",
    "reducer": "reducer",
    "reducers": "reducer",
    "default_reducer": "reducer",
    "embedding_regularizer": "regularizer",
    "weight_regularizer": "regularizer",
    "loss": "loss",
    "losses": "loss",
    "miner": "miner",
    "miners": "miner",
    "sampler": "sampler",
    "schedulers": "scheduler",
}


class NotFoundError(ValueError):
    """A ``type`` that names no class of the slot's kind; the text says what there is."""


def find(kind: str, name: str) -> type:
    """The class that ``name`` means in a slot of ``kind``.

    A dotted path imports its module, and so runs that module's code; what it names is not called before it is
    known to be a class that derives from one of the kind's bases.

    Raises:
        NotFoundError: if there is no such class.
    """
    if "." in name:
        return _checked(kind, name, _imported(name))
    for module in KINDS[kind].modules:
        if name in (classes := _classes(kind, importlib.import_module(module))):
            return classes[name]
    known = names(kind)
    raise NotFoundError(f"got {got(name)}, {one_of(known)}, or a dotted path{nearest(name, known)}")


def names(kind: str) -> list[str]:
    """The names that a slot of ``kind`` knows: ours first, then the others, each family sorted."""
    found = [
        name
        for module in KINDS[kind].modules
        for name in sorted(_classes(kind, importlib.import_module(module)))
    ]
    return list(dict.fromkeys(found))


def _classes(kind: str, module: ModuleType) -> dict[str, type]:
    public = {
        name: value for name, value in vars(module).items() if not name.startswith(("_", "Base", "Generic"))
    }
    return {name: value for name, value in public.items() if _derives(value, kind)}


def _derives(value: object, kind: str) -> bool:
    bases = KINDS[kind].bases
    return (
        isinstance(value, type)
        and issubclass(value, bases)
        and (value not in bases or value is MultipleLosses)
    )


def _imported(name: str) -> object:
    module_name, _, attribute = name.rpartition(".")
    if not all(part.isidentifier() for part in name.split(".")):
        raise NotFoundError(f"got {got(name)}, expected a dotted path such as package.module.Class")
    try:
        module = importlib.import_module(module_name)
        if hasattr(module, attribute):
            return getattr(module, attribute)
    except (Exception, SystemExit) as error:  # importing runs the module's code, which may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise NotFoundError(f"got {got(name)}, expected a module that can be imported; {reason}") from error
    known = [public for public in vars(module) if not public.startswith("_")]
    raise NotFoundError(f"got {got(name)}, expected a class in {module_name}{nearest(attribute, known)}")


def _checked(kind: str, name: str, found: object) -> type:
    if isinstance(found, type) and _derives(found, kind):
        return found
    what = "" if isinstance(found, type) else f", a {type(found).__name__}"
    bases = " or ".join(base.__name__ for base in KINDS[kind].bases)
    wanted = KINDS[kind].described or f"a class that derives from {bases}"
    raise NotFoundError(f"got {got(name)}{what}, expected {wanted}")
