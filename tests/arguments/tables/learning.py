"""Losses and miners."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_metric_learning.distances import LpDistance

from dr_plugin import losses, miners

from .entries import Call, Entry
from .small import LABELS, POINTS, SIMILAR, TRIPLETS


def _batch(_: Path) -> dict[str, Any]:
    return {"embeddings": POINTS, "labels": LABELS}


def _with_references(_: Path) -> dict[str, Any]:
    return {"embeddings": POINTS[:4], "labels": LABELS[:4], "ref_emb": POINTS + 0.5, "ref_labels": LABELS}


def _with_triplets(_: Path) -> dict[str, Any]:
    return {"embeddings": POINTS, "labels": LABELS, "indices_tuple": TRIPLETS}


def _with_pairs(_: Path) -> dict[str, Any]:
    return {
        "embeddings": POINTS,
        "labels": LABELS,
        "indices_tuple": (*TRIPLETS[:2], TRIPLETS[0], TRIPLETS[2]),
    }


def _called(component: Any, **inputs: Any) -> Any:
    return component(**inputs)


def _trained(loss: Any, **inputs: Any) -> Any:
    """The loss and its gradient."""
    embeddings = inputs.pop("embeddings")
    embeddings = embeddings.clone().requires_grad_(embeddings.is_floating_point())
    value = loss(embeddings, **inputs)
    assert value.shape == ()
    if value.requires_grad:  # not where the embeddings are whole numbers
        value.backward()
    return value.detach()


def _mined(miner: Any) -> Any:
    parts = miner(POINTS, LABELS)
    assert len(parts) == 3
    assert len({len(part) for part in parts}) == 1
    return parts


_LOSS = {
    "batch": Call(_trained, _batch),
    "references": Call(_trained, _with_references),
    "triplets": Call(_trained, _with_triplets),
    "pairs": Call(_trained, _with_pairs),
}
_MINER = {"batch": Call(_called, _batch), "references": Call(_called, _with_references)}


def _observed(miner: Any, indices: Any, **inputs: Any) -> Any:
    miner.observe(indices)
    return miner(**inputs)


def _observed_memory(memory: Any, weights: Any, **inputs: Any) -> Any:
    memory.observe(weights)
    return memory(**inputs).detach()


def _use_loss(loss: Any) -> Any:
    size = getattr(loss, "embedding_size", POINTS.shape[1])
    return loss(torch.ones(6, size) * torch.arange(6.0)[:, None], LABELS).detach()


ENTRIES: Mapping[str, Entry] = {
    "losses.CrossBatchMemory": Entry(
        losses.CrossBatchMemory,
        lambda _: {"loss": losses.DeepRankingLoss(), "embedding_size": 4, "memory_size": 12},
        # The constructor is PML's, and what it does with a call.
        left_out=frozenset({"loss", "embedding_size", "memory_size", "miner"}),
    ),
    "losses.DeepRankingLoss": Entry(
        losses.DeepRankingLoss, lambda _: {"distance": LpDistance(power=2)}, _use_loss, _LOSS
    ),
    "losses.GatheredLoss": Entry(
        losses.GatheredLoss,
        lambda _: {"loss": losses.DeepRankingLoss(), "miner": miners.UniformTripletMiner()},
        _use_loss,
        {"batch": Call(_trained, _batch)},
    ),
    "losses.LRMLLoss": Entry(losses.LRMLLoss, lambda _: {}, _use_loss, _LOSS),
    "losses.PDDMLoss": Entry(losses.PDDMLoss, lambda _: {"embedding_size": 4}, lambda made: made.unit, _LOSS),
    "losses.PDDMUnit": Entry(
        losses.PDDMUnit,
        lambda _: {"embedding_size": 4},
        lambda unit: unit.matrix(torch.ones(2, unit.embedding_size)).detach(),
        {
            "pairs": Call(_called, lambda _: {"x": POINTS, "y": POINTS + 1}),
            "matrix": Call(
                lambda unit, **inputs: unit.matrix(**inputs), lambda _: {"x": POINTS, "y": POINTS + 1}
            ),
            "candidates": Call(
                lambda unit, **inputs: unit.candidates(**inputs),
                lambda _: {"query": POINTS[:2], "gallery": POINTS, "indices": torch.tensor([[0, 1], [2, 3]])},
            ),
        },
        called={"query": "x", "gallery": "y"},
    ),
    "losses.ReservoirMemory": Entry(
        losses.ReservoirMemory,
        lambda _: {"loss": losses.DeepRankingLoss(), "embedding_size": 4, "capacity_per_class": 2},
        _use_loss,
        {
            "batch": Call(_trained, _batch),
            "triplets": Call(_trained, _with_triplets),
            "mask": Call(
                _trained,
                lambda at: {
                    **_batch(at),
                    "enqueue_mask": torch.tensor([True, False, True, True, False, True]),
                },
            ),
        },
        functions=frozenset({"miner"}),
    ),
    "miners.HardQuadrupletMiner": Entry(
        miners.HardQuadrupletMiner,
        lambda _: {"similarity": losses.PDDMUnit(4)},
        lambda miner: _mined(miner) if isinstance(miner.similarity, losses.PDDMUnit) else None,
        _MINER,
    ),
    "miners.RankedNegativeMiner": Entry(miners.RankedNegativeMiner, lambda _: {}, _mined, _MINER),
    "miners.ReservoirTripletMiner": Entry(
        miners.ReservoirTripletMiner,
        lambda _: {"relevance": SIMILAR},
        lambda miner: (
            _observed(miner, range(6), embeddings=POINTS, labels=LABELS)
            if miner.relevance is not None
            else _mined(miner)
        ),
        {
            "observed": Call(_observed, lambda at: {"indices": torch.arange(6), **_batch(at)}),
        },
        called={"indices": "observe"},
    ),
    "miners.UniformTripletMiner": Entry(miners.UniformTripletMiner, lambda _: {}, _mined, _MINER),
}
