"""Samplers, reservoirs and the draws of triplets."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, RandomSampler

from dr_plugin import reservoirs, samplers, triplets

from .entries import Call, Entry
from .small import LABELS, ROWS, SIMILAR

CLASSES = LABELS.numpy()


def _first_batch(sampler: Any) -> list[int]:
    batch = next(iter(sampler))
    assert all(type(index) is int and 0 <= index < 12 for index in batch)
    return batch


_BATCHES = {
    "batch": Call(lambda sampler, **inputs: sampler.batch(**inputs), lambda _: {"epoch": 0, "index": 0}),
    "set_epoch": Call(
        lambda sampler, **inputs: sampler.set_epoch(**inputs), lambda _: {"epoch": 1, "start_batch": 0}
    ),
    "state_dict": Call(
        lambda sampler, **inputs: sampler.state_dict(**inputs), lambda _: {"epoch": 1, "batches_consumed": 1}
    ),
}


def _streamed(reservoir: Any, **inputs: Any) -> Any:
    reservoir.extend(**inputs)
    return len(reservoir)


def _bits(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randint(1 << triplets.RANDOM_BITS, shape, generator=torch.Generator().manual_seed(0))


def _draw_parameters(_: Any) -> dict[str, Any]:
    return {
        "out_of_class_ratio": 0.2,
        "relevance_threshold": None,
        "relevance_margin": 0.0,
        "weighting": "relevance",
        "max_trials": 10,
    }


_ENTRIES = torch.from_numpy(SIMILAR).float()
_OF_CLASSES = torch.cat([_ENTRIES[:3, :3].flatten(), _ENTRIES[3:, 3:].flatten()])

_KINDS = ("relevance_threshold", "relevance_margin", "query_weights", "candidate_weights")

ENTRIES: Mapping[str, Entry] = {
    "samplers.DistributedBatchSampler": Entry(
        samplers.DistributedBatchSampler,
        lambda _: {"sampler": BatchSampler(RandomSampler(range(6)), 3, drop_last=True), "group": 3},
        lambda sampler: next(iter(sampler), [0]),
        called={"group": "sampler"},
    ),
    "samplers.OfflineTripletSampler": Entry(
        samplers.OfflineTripletSampler,
        lambda _: {"triplets": ROWS, "batch_size": 3, "weights": np.ones(2), "labels": CLASSES},
        lambda sampler: next(iter(sampler)),
        _BATCHES,
        called={"labels": "triplets"},
    ),
    "samplers.ReservoirTripletSampler": Entry(
        samplers.ReservoirTripletSampler,
        lambda _: {"labels": CLASSES, "relevance": SIMILAR, "batch_size": 6, "capacity": 3},
        _first_batch,
        _BATCHES,
        unbounded=frozenset({"batches_per_epoch"}),
        called={"labels": "relevance|capacity", "exact": "capacity", "relevance": "labels"},
        examples=40,
    ),
    "samplers.UniformTripletSampler": Entry(
        samplers.UniformTripletSampler,
        lambda _: {"labels": CLASSES, "batch_size": 6},
        _first_batch,
        _BATCHES,
    ),
    "reservoirs.ClassReservoirs": Entry(
        reservoirs.ClassReservoirs,
        lambda _: {"capacity": 2, "classes": 2, "seed": 0},
        lambda made: _streamed(made, items=range(6), labels=[0] * 6, weights=np.ones(6)),
        {
            "extend": Call(
                _streamed, lambda _: {"items": np.arange(6), "labels": CLASSES, "weights": np.ones(6)}
            ),
            "held": Call(lambda made, label: made.held(label), lambda _: {"label": 0}),
            "draw": Call(
                lambda made, **inputs: _filled(made).draw(**inputs)[0], lambda _: {"labels": CLASSES}
            ),
            "keep": Call(
                lambda made, **inputs: _filled(made).keep(**inputs), lambda _: {"sizes": np.array([1, 2])}
            ),
            "resize": Call(lambda made, **inputs: _filled(made).resize(**inputs), lambda _: {"capacity": 4}),
        },
        called={"capacity": "total_capacity", "classes": "total_capacity|labels", "labels": "draw"},
    ),
    "reservoirs.WeightedReservoir": Entry(
        reservoirs.WeightedReservoir,
        lambda _: {"capacity": 2, "seed": 0},
        lambda made: _streamed(made, items=range(6), weights=np.ones(6)),
        {
            "extend": Call(_streamed, lambda _: {"items": np.arange(6), "weights": np.ones(6)}),
            "draw": Call(lambda made, **inputs: _one(made).draw(**inputs)[0], lambda _: {"count": 3}),
        },
    ),
    "triplets.ClassLayout": Entry(
        triplets.ClassLayout,
        lambda _: {"labels": LABELS, "reference_labels": LABELS},
        lambda made: made.pairs(),
    ),
    "triplets.RelevantTriplets": Entry(
        triplets.RelevantTriplets,
        lambda _: {
            "layout": triplets.ClassLayout(LABELS),
            "values": _OF_CLASSES,
            "query_weights": torch.ones(6),
            "candidate_weights": torch.ones(6),
        },
        lambda made: made.draw(4, _bits)[:3],
        # There may be no triplets of a kind.
        called={"values": "relevance|out_of_class_ratio", **dict.fromkeys(_KINDS, "out_of_class_ratio")},
    ),
    "triplets.TableRelevance": Entry(
        triplets.TableRelevance,
        lambda _: {"table": SIMILAR, "labels": CLASSES},
        lambda made: made.total(range(len(made))),
        {
            "pairs": Call(
                lambda made, **inputs: made.pairs(**inputs), lambda _: {"i": np.arange(3), "j": np.arange(3)}
            ),
            "total": Call(lambda made, **inputs: made.total(**inputs), lambda _: {"i": np.arange(3)}),
            "block": Call(lambda made, **inputs: made.block(**inputs), lambda _: {"members": np.arange(3)}),
        },
        called={"table": "relevance|labels"},
        also=(IndexError,),
    ),
    "triplets.UniformTriplets": Entry(
        triplets.UniformTriplets,
        lambda _: {"labels": LABELS, "reference_labels": LABELS},
        lambda made: made.queries,
    ),
    "triplets.as_relevance": Entry(
        triplets.as_relevance,
        lambda _: {"relevance": SIMILAR, "labels": CLASSES, "count": 6},
        lambda made: made.total(np.arange(len(made))),
        called={"count": "relevance", "labels": "relevance"},
    ),
    "triplets.blocks": Entry(
        lambda relevance, labels: list(triplets.blocks(relevance, labels)),
        lambda _: {"relevance": triplets.TableRelevance(SIMILAR), "labels": CLASSES},
        called={"relevance": "labels"},
    ),
    "triplets.check_draw": Entry(triplets.check_draw, _draw_parameters),
    "triplets.class_entries": Entry(
        triplets.class_entries,
        lambda _: {"relevance": triplets.TableRelevance(SIMILAR), "labels": CLASSES, "out": None},
        called={"relevance": "labels"},
    ),
    "triplets.uniform_below": Entry(
        triplets.uniform_below,
        lambda _: {"bits": torch.tensor([1 << 61]), "bound": torch.tensor(4)},
        left_out=frozenset({"bits", "bound"}),  # the draws' innermost step, which checks nothing
    ),
}


def _filled(made: Any) -> Any:
    made.extend(np.arange(6), CLASSES, np.ones(6))
    return made


def _one(made: Any) -> Any:
    made.extend(np.arange(6), np.ones(6))
    return made
