"""Trunks."""

from collections.abc import Mapping
from typing import Any

import torch

from dr_plugin import trunks

from .entries import Call, Entry
from .small import PICTURES


def _embedded(trunk: Any) -> Any:
    embeddings = trunk.eval()(PICTURES).detach()
    assert embeddings.ndim == 2
    assert len(embeddings) == len(PICTURES)
    return embeddings


_FORWARD = {
    "forward": Call(lambda trunk, images: trunk.eval()(images).detach(), lambda _: {"images": PICTURES})
}

_UINT8 = (PICTURES * 255).to(torch.uint8)

# Images of one type and weights of another: autocast brings them together, or torch tells of it.
_TORCHS_OWN = {"images": "images|scalar type|Input type"}

ENTRIES: Mapping[str, Entry] = {
    "trunks.ConvNetEmbedding": Entry(
        trunks.ConvNetEmbedding,
        lambda _: {"convnet": trunks.SmallConvNet((2,)), "input_size": 8},
        _embedded,
        _FORWARD,
        called=_TORCHS_OWN,
        also=(OSError, RuntimeError),
    ),
    "trunks.DeepRankingTrunk": Entry(
        trunks.DeepRankingTrunk,
        lambda _: {"convnet": trunks.SmallConvNet((2,)), "input_size": 8, "embedding_size": 4},
        lambda trunk: _embedded(trunk) if trunk.input_size == 8 else trunk.input_size,
        _FORWARD,
        called=_TORCHS_OWN,
        also=(OSError, RuntimeError),
    ),
    "trunks.NormalizedTrunk": Entry(
        trunks.NormalizedTrunk,
        lambda _: {"trunk": trunks.SmallConvNet((2,)), "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)},
        lambda trunk: trunk.eval()(_UINT8).detach(),
        {"forward": Call(lambda trunk, images: trunk.eval()(images).detach(), lambda _: {"images": _UINT8})},
        called={"images": "images|padded input size"},  # of images too small for the trunk, torch tells
        also=(RuntimeError,),
    ),
    "trunks.SmallConvNet": Entry(trunks.SmallConvNet, lambda _: {"channels": (2,)}, _embedded),
    "trunks.SmallResNet": Entry(trunks.SmallResNet, lambda _: {"layers": (1,), "width": 2}, _embedded),
    "trunks.load_weights": Entry(
        trunks.load_weights,
        lambda at: {"trunk": trunks.SmallConvNet((2,)), "file": at / "weights.pt"},
        called={"file": "weights"},
        also=(OSError,),
    ),
}
