"""Weights from a local file, checked name by name before anything is loaded."""

import os
import zipfile
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dr_plugin.atomic import check_archive
from dr_plugin.checks import check_path, shown

CHECKPOINT_FORMAT = 1
_NAMES_SHOWN = 8
_CONVNET = "convnet."  # before the names of a trunk's ConvNet


def load_weights(trunk: nn.Module, file: str | os.PathLike[str]) -> None:
    """Load a file's weights into a trunk, or into its ConvNet alone, completely or not at all.

    Which of the two follows from the names in the file. Any floating type is cast to the trunk's own.

    - A ConvNet's file may still hold the classifier that the trunk cut off: those names are left out.
    - ``num_batches_tracked`` of batch normalisation, which old files lack, keeps its value.

    Args:
        trunk: A `DeepRankingTrunk`, or any module.
        file: A state dict (of the ConvNet with torchvision's names, of a `ConvNetEmbedding`, or of a whole
            trunk), or one of our checkpoints. Read with ``weights_only=True``: no code in it runs. A zip archive,
            which is what torch writes today, is held against its checksums.
    Raises:
        ValueError: if the trunk is no module, the file cannot be read, or is of another network: one error with every
            name that is missing, unexpected or of the wrong shape.
    Example:
        >>> load_weights(trunk, "runs/tiny_uniform/checkpoint/best.pt")  # doctest: +SKIP
    """
    if not isinstance(trunk, nn.Module):
        raise ValueError(f"trunk: got {shown(trunk)}, expected a module")
    load_state(trunk, read_state(file), source=str(file))


def read_state(file: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a state dict, or the trunk's state dict in one of our checkpoints; see `load_weights`."""
    path = check_path("weights", file).expanduser()
    if not path.is_file():
        raise ValueError(f"weights: got {str(file)!r}, which is no file; expected 'imagenet' or a local file")
    try:
        if zipfile.is_zipfile(path):
            check_archive(path)
        # Memory-mapped, a checkpoint's optimizer state is never read; the legacy format has no such option.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # damaged bytes fail in many ways, none of which is the caller's concern
        reason = f": {error}" if isinstance(error, zipfile.BadZipFile) else ""
        raise ValueError(
            f"weights: {str(file)!r} is damaged, or holds more than tensors and plain values; "
            f"expected a file that torch.load(weights_only=True) accepts ({type(error).__name__}{reason})"
        ) from error
    if isinstance(content, Mapping) and "models" in content:
        content = _trunk_of_checkpoint(content, str(file))
    is_state = isinstance(content, Mapping) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    )
    if not is_state or not content:
        got = f"a dict with {_some(content)}" if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(
            f"weights: {str(file)!r} holds {got}, expected a state dict (name -> tensor) or a checkpoint"
        )
    return dict(content)


def _trunk_of_checkpoint(content: Mapping[str, object], source: str) -> object:
    models = content["models"]
    if content.get("format") != CHECKPOINT_FORMAT:
        raise ValueError(
            f"weights: {source!r} is a checkpoint of format {content.get('format')!r}, "
            f"expected format {CHECKPOINT_FORMAT}; read it with the version that wrote it"
        )
    if not isinstance(models, Mapping) or "trunk" not in models:
        raise ValueError(f"weights: the checkpoint {source!r} holds no model 'trunk'")
    return models["trunk"]


def load_state(trunk: nn.Module, state: Mapping[str, Tensor], *, source: str = "state dict") -> None:
    """Load a state dict into a trunk, or into its ConvNet alone; see `load_weights`."""
    target = trunk
    convnet = getattr(trunk, "convnet", None)
    if isinstance(convnet, nn.Module) and all(name.startswith(_CONVNET) for name in state):
        state = {name.removeprefix(_CONVNET): value for name, value in state.items()}  # of a ConvNetEmbedding
    if isinstance(convnet, nn.Module) and (
        len(state.keys() & convnet.state_dict().keys()) >= len(state.keys() & trunk.state_dict().keys())
    ):
        target = convnet
        dropped: frozenset[str] = getattr(trunk, "classifier_names", frozenset())
        state = {name: value for name, value in state.items() if name not in dropped}
    own = target.state_dict()
    state = {name: value for name, value in own.items() if name.endswith("num_batches_tracked")} | dict(state)
    wrong_shape = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    problems = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "of the wrong shape": wrong_shape,
    }
    found = [f"{len(names)} {kind}: {_some(names)}" for kind, names in problems.items() if names]
    if found:
        part = f"the ConvNet {type(target).__name__}" if target is convnet else type(target).__name__
        raise ValueError(f"weights: {source!r} does not fit {part}; nothing was loaded; {'; '.join(found)}")
    target.load_state_dict(state)


def _some(names: object) -> str:
    """The first few names, and how many more there are."""
    listed = [str(name) for name in names]  # type: ignore[attr-defined]
    more = len(listed) - _NAMES_SHOWN
    return ", ".join(listed[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
