"""A run's trunk as a file that others read, its normalisation inside, checked against the run: `dr export`."""

import importlib.util
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from dr_plugin.atomic import replacing
from dr_plugin.experiments import checkpoint
from dr_plugin.experiments.data import batch_augment
from dr_plugin.trunks import NormalizedTrunk
from dr_plugin.trunks.weights import CHECKPOINT_FORMAT, load_weights

from .trained import FinishedRun, finished_run, new_trunk

TOLERANCE = 1e-4  # largest difference from the run's embeddings, as a share of how far these lie apart
GPU_TOLERANCE = 2e-3  # where convolutions may round to TF32, which has 10 bits
ROUNDING = 0.05  # of the embeddings' length, added to how far they lie apart: that may be next to nothing
BATCHES = (1, 3, 4)  # that the check embeds; the example that a program is traced with has 2

Embed = Callable[[Tensor], Tensor]  # images (B, 3, S, S) uint8 -> (B, D)


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: The file.
        what: What it is, in words.
        image_size: Side of the images that it takes, S.
        embedding_size: Length of its embeddings, D.
        difference: The largest between an entry of its embeddings and the run's.
        notes: What the user should know of.
    """

    path: Path
    what: str
    image_size: int
    embedding_size: int
    difference: float
    notes: list[str]


class _Kind(NamedTuple):
    """A kind of file.

    Attributes:
        what: It is, in words.
        write: Writes it.
        read: Reads it again, to be checked.
        has_device: Whether it is bound to the device that it was made on.
        packages: That it needs beside our own.
    """

    what: str
    write: Callable[[FinishedRun, IO[bytes]], None]
    read: Callable[[FinishedRun, Path], Embed]
    has_device: bool = False
    packages: tuple[str, ...] = ()


def export_run(folder: Path, to: Path, *, device: str = "cpu", force: bool = False) -> Exported:
    """Write the trunk of a finished run to a file, normalisation inside, and see that it embeds as the run does.

    The file takes uint8 images (B, 3, S, S) of the run's image size, for every B of at least 1, and computes in
    float32. It is read again and compared with the run (in float32, too) on images drawn from a fixed seed, in batches
    of several sizes, before it takes its place: a file that differs is never there, nor half a file.

    Args:
        folder: Of a run that is finished.
        to: ``.pt2`` is a program for `torch.export.load`, ``.onnx`` one for ONNX runtimes, ``.pt`` or ``.pth``
            state dicts for ``torch.load(weights_only=True)``: of the `NormalizedTrunk`, and of the trunk alone, for
            `load_weights`; the bare name ``state_dict`` is ``state_dict.pt``.
        device: That a .pt2 is to run on, which it is bound to; the others are made for every device.
        force: Replace a file that is there.
    Raises:
        ValueError: if the folder holds no finished run, the file is of no such kind, is there already or cannot be
            where it is to be, the trunk cannot be traced, or the file's embeddings differ from the run's.
        WriteError: if the file cannot be written.
        ImportError: if a package is missing that ``.onnx`` needs.
    """
    to, kind = _checked(to, device, force)
    run = finished_run(folder, device=device if kind.has_device else "cpu")
    images = probe_images(run.recipe.data.image_size)
    expected = _embedded(run, images)
    run.trunk.requires_grad_(False).to(memory_format=torch.contiguous_format)
    content = io.BytesIO()  # torch answers to a failed write by errors of its own
    kind.write(run, content)
    with replacing(to, shared=True) as file:
        file.write(content.getbuffer())
        file.flush()
        found = _read_again(kind, run, Path(file.name), images, to)
        difference = _difference(found, expected, to, run.device)
    precision, notes = run.recipe.precision, []
    if precision != "float32":
        notes.append(f"the run was trained and judged in {precision}, the file computes in float32")
    return Exported(to, kind.what, run.recipe.data.image_size, expected.shape[1], difference, notes)


def probe_images(size: int) -> Tensor:
    """The images (8, 3, S, S) uint8 that files are checked with: areas of colour under noise."""
    generator = torch.Generator().manual_seed(0)
    count = sum(BATCHES)
    areas = torch.randint(0, 256, (count, 3, 4, 4), generator=generator).float()
    noise = torch.randint(-40, 41, (count, 3, size, size), generator=generator)
    return (interpolate(areas, (size, size)) + noise).clamp(0, 255).to(torch.uint8)


def _checked(to: Path, device: str, force: bool) -> tuple[Path, _Kind]:
    """The file to write and its kind; all that can be said before the run is opened."""
    if to.name == "state_dict":
        to = to.with_name("state_dict.pt")
    kind = _KINDS.get(to.suffix.lower())
    if kind is None:
        raise ValueError(f"--to: got {to}, expected a file that ends in {', '.join(_KINDS)}, or state_dict")
    if not to.parent.is_dir():
        raise ValueError(f"--to: got {to}, expected a file in a folder that exists: there is no {to.parent}")
    if to.is_dir():
        raise ValueError(f"--to: got {to}, a folder, expected a file")
    if to.exists() and not force:
        raise ValueError(f"--to: got {to}, which exists, expected a new file; to replace it, give --force")
    if not kind.has_device and device not in ("cpu", "auto"):
        raise ValueError(f"--device: got {device} for {to.name}, expected none: the file is for every device")
    if missing := [name for name in kind.packages if importlib.util.find_spec(name) is None]:
        raise ImportError(
            f"--to: {to.name} needs the packages {', '.join(kind.packages)}, of which {', '.join(missing)} "
            "cannot be found: pip install 'dr-plugin[onnx]'"
        )
    return to, kind


@torch.no_grad()
def _embedded(run: FinishedRun, images: Tensor) -> Tensor:
    """What the run's evaluation makes of the images, in float32."""
    prepared = batch_augment(run.recipe)(images.to(run.device), training=False)
    expected: Tensor = run.trunk(prepared).float().cpu()
    if not expected.isfinite().all():
        raise ValueError(f"{run.folder}: got NaN or infinity in its embeddings, expected finite numbers")
    return expected


@torch.no_grad()
def _read_again(kind: _Kind, run: FinishedRun, path: Path, images: Tensor, to: Path) -> Tensor:
    """What the file at ``path``, which is to be ``to``, makes of the images, in batches of several sizes."""
    try:
        embed = kind.read(run, path)
        return torch.cat([embed(batch.to(run.device)).cpu() for batch in images.split(BATCHES)])
    except Exception as error:  # whatever those who read such files make of one that is wrong
        raise ValueError(
            f"{to.name}: cannot be used again: {type(error).__name__}: {_first_line(error)}; it was not written"
        ) from error


def _difference(found: Tensor, expected: Tensor, to: Path, device: torch.device) -> float:
    """The largest difference of an entry, seen to be small."""
    if found.shape != expected.shape:
        raise ValueError(
            f"{to.name}: got embeddings {tuple(found.shape)}, expected {tuple(expected.shape)}; it was not written"
        )
    difference = float((found - expected).abs().max())
    apart = (expected - expected.mean(0)).norm(dim=1).max() + ROUNDING * expected.norm(dim=1).max()
    allowed = (TOLERANCE if device.type == "cpu" else GPU_TOLERANCE) * float(apart)
    if not difference <= allowed:  # nor where it is NaN
        raise ValueError(
            f"{to.name}: got embeddings that differ from the run's by up to {difference:.2g}, expected at most "
            f"{allowed:.2g}; it was not written"
        )
    return difference


def _network(run: FinishedRun) -> NormalizedTrunk:
    normalize = run.recipe.data.normalize
    network = NormalizedTrunk(run.trunk, list(normalize.mean), list(normalize.std))
    return network.to(run.device).eval()


def _program(run: FinishedRun) -> torch.export.ExportedProgram:
    """The network traced with a batch of any size."""
    size = run.recipe.data.image_size
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8, device=run.device)
    shapes = {"images": {0: torch.export.Dim("batch", min=1)}}
    try:
        with torch.no_grad():
            program = torch.export.export(_network(run), (example,), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # whatever a trunk of the user's does that cannot be traced
        raise ValueError(f"{_reason(run, error)}; a .pt file needs no tracing") from error
    for node in program.graph.nodes:
        # It names files of this machine, which are no business of those who get the program.
        node.meta.pop("stack_trace", None)
    return program


def _reason(run: FinishedRun, error: Exception) -> str:
    return f"the trunk {type(run.trunk).__name__} cannot be exported: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _write_program(run: FinishedRun, file: IO[bytes]) -> None:
    torch.export.save(_program(run), file)


def _read_program(run: FinishedRun, path: Path) -> Embed:
    program = torch.export.load(io.BytesIO(path.read_bytes()))  # by name it would have to end in .pt2
    embed: Embed = program.module()
    return embed


def _write_onnx(run: FinishedRun, file: IO[bytes]) -> None:
    traced = _program(run)
    try:
        program: Any = torch.onnx.export(
            traced, dynamo=True, input_names=["images"], output_names=["embeddings"], verbose=False
        )
        content = program.model_proto.SerializeToString()
    except Exception as error:  # whatever ONNX has no operator for; and it holds no more than 2 GB
        raise ValueError(f"{_reason(run, error)}; a .pt2 or .pt file needs no ONNX") from error
    file.write(content)


def _read_onnx(run: FinishedRun, path: Path) -> Embed:
    onnxruntime: Any = importlib.import_module("onnxruntime")
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])

    def embed(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["embeddings"], {"images": images.numpy()})[0])

    return embed


def _write_state(run: FinishedRun, file: IO[bytes]) -> None:
    """In the form of a checkpoint, so that `load_weights` reads it; the weights are there once, under two names."""
    state = {name: value.cpu() for name, value in _network(run).state_dict().items()}
    prefix = "trunk."
    trunk = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    content = {
        "format": CHECKPOINT_FORMAT,
        "models": {"normalized_trunk": state, "trunk": trunk},
        "trunk": run.recipe.trunk.model_dump(),
        "image_size": run.recipe.data.image_size,
    }
    torch.save(content, file)


def _read_state(run: FinishedRun, path: Path) -> Embed:
    """From the file alone but for the trunk's class, as a user would."""
    network = NormalizedTrunk(new_trunk(run.recipe))
    network.load_state_dict(checkpoint.load(path)["models"]["normalized_trunk"])
    load_weights(network.trunk, path)
    return network.eval()


_STATE = _Kind(
    "the weights and the normalisation, for torch.load(weights_only=True)", _write_state, _read_state
)
_KINDS = {
    ".pt2": _Kind("a program, for torch.export.load", _write_program, _read_program, has_device=True),
    ".onnx": _Kind("an ONNX model", _write_onnx, _read_onnx, packages=("onnx", "onnxscript", "onnxruntime")),
    ".pt": _STATE,
    ".pth": _STATE,
}
