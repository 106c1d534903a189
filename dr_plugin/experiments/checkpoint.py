"""Checkpoints: one file written atomically, loaded without pickle, holding all that a run needs to go on.

A checkpoint is a dictionary of tensors and plain values under ``{"format": 1, ...}``, so that
``torch.load(weights_only=True)`` reads it and a hostile file cannot run code.
"""

import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from dr_plugin.atomic import check_archive, replacing

from .problems import one_line

FORMAT = 1
_PLAIN = (bool, int, float, torch.Tensor)


def save(path: Path, state: Mapping[str, Any], *, keep: Path | None = None) -> None:
    """Write ``state`` to ``path`` atomically; the file that was there before is ``keep`` from then on.

    Raises:
        WriteError: if it cannot be written; both files are then as they were.
    """
    with replacing(path, keep=keep) as file, _with_checksums():
        watched = _Watched(file)
        try:
            torch.save({"format": FORMAT, **state}, watched)
        except RuntimeError as error:
            # torch then speaks of "unexpected pos 64 vs 0".
            if watched.failure is not None:
                raise watched.failure from None
            if isinstance(error.__context__, KeyboardInterrupt):  # between two writes
                raise error.__context__ from None
            raise


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint written by :func:`save` onto the CPU.

    Every byte of its content is held against the checksums in the file first, which torch does not look at: a flipped
    bit would load as another weight.

    Raises:
        ValueError: if the file is missing, damaged, holds anything but tensors and plain values, or is of
            another format.
    """
    try:
        check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(
            f"{path}: no checkpoint here; expected the folder of a run that was started before"
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # of which damaged bytes raise many kinds
        reason = one_line((str(error) or type(error).__name__).splitlines()[0])
        raise ValueError(
            f"{path}: not a readable checkpoint ({reason}); it is damaged or not one of ours"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"{path}: got checkpoint format {found!r}, expected {FORMAT}")
    return state


class _Watched:
    """A file that remembers why a write failed: torch answers with errors of its own."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.failure: BaseException | None = None

    def write(self, content: bytes) -> int:
        try:
            return self.file.write(content)
        except BaseException as error:  # an interrupt is as good a reason
            self.failure = self.failure or error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@contextmanager
def _with_checksums() -> Iterator[None]:
    """Let torch write checksums, whatever the process has set."""
    if not hasattr(torch.serialization, "set_crc32_options"):  # a torch that knows no other way
        yield
        return
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(True)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


def generators_state(device: torch.device) -> dict[str, Any]:
    """The states of Python's, numpy's and torch's global generators, that of ``device`` included.

    PML's samplers and miners draw from the global generators, so an exact resume needs them all.
    """
    version, keys, gauss = random.getstate()
    legacy: tuple[Any, ...] = np.random.get_state()  # type: ignore[assignment]  # noqa: NPY002 - PML's generator
    name, words, position, has_gauss, cached = legacy
    state: dict[str, Any] = {
        "python": [version, list(keys), gauss],
        "numpy": [
            name,
            torch.from_numpy(words.astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_generators(state: Mapping[str, Any], device: torch.device) -> None:
    """Set the global generators as :func:`generators_state` found them; a GPU's only if ``device`` is one too."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    name, words, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, words.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def seed_everything(seed: int) -> None:
    """Seed the global generators, which PML's samplers and miners and torch's dropout draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the generator that PML draws from
    torch.manual_seed(seed)


def not_finite(modules: Iterable[tuple[str, torch.nn.Module]]) -> str | None:
    """The first weight that is infinite or not a number, as ``module.weight``; waits for the device once."""
    weights = {f"{key}.{name}": value for key, module in modules for name, value in module.named_parameters()}
    finite = torch.stack([torch.isfinite(value).all() for value in weights.values()])
    return next((name for name, good in zip(weights, finite.tolist(), strict=True) if not good), None)


def module_state(module: torch.nn.Module) -> dict[str, Any]:
    """A module's ``state_dict`` and, beside it, the plain attributes that ``state_dict`` leaves out.

    PML keeps the state of a miner or loss partly in plain attributes: ``CrossBatchMemory`` its queue position, for
    example. Numbers, booleans and tensors among the attributes of each submodule are saved too.
    """
    attributes = {
        f"{name}\n{key}": _plain(value)
        for name, child in module.named_modules()
        for key, value in vars(child).items()
        if isinstance(value, _PLAIN) and key != "training"
    }
    return {"state_dict": module.state_dict(), "attributes": attributes}


def _plain(value: Any) -> Any:
    """A copy that a checkpoint can hold: a number of numpy's, such as ArcFaceLoss's margin, would not load again."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    return value.item() if isinstance(value, np.generic) else value


def load_module_state(module: torch.nn.Module, state: Mapping[str, Any]) -> None:
    """Restore what :func:`module_state` saved."""
    module.load_state_dict(state["state_dict"])
    children = dict(module.named_modules())
    for path, value in state["attributes"].items():
        name, key = path.split("\n")
        setattr(children[name], key, value)
