"""The machine that a run works on: its device, and what ``environment.json`` says of it."""

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from dr_plugin import __version__, distributed

from .recipe import RecipeError

_PACKAGES = ("torch", "torchvision", "pytorch-metric-learning", "faiss-cpu", "numpy", "scikit-learn")


def pick_device(device: str) -> torch.device:
    """The torch device that ``device`` names, seen to work; "auto" takes a GPU where there is one.

    Of several processes of a machine, "auto" and "cuda" give each a GPU of its own.

    Raises:
        RecipeError: if it is unknown or not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if distributed.world_size() > 1 and device.startswith("cuda"):
        if device != "cuda":
            raise RecipeError(
                f"--device: got {device!r} for {distributed.world_size()} processes, expected cuda: each takes its own"
            )
        device = f"cuda:{os.environ.get('LOCAL_RANK', distributed.rank())}"
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).item()
        if chosen.type == "cuda" and distributed.world_size() > 1:
            torch.cuda.set_device(chosen)  # for a trunk or loss of the user's that names none
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(
            f"--device: got {device!r}, expected auto, cpu, or a GPU of this machine ({reason})"
        ) from None
    return chosen


def environment(device: torch.device, **settings: Any) -> dict[str, Any]:
    """Versions and device of a run, and its settings such as the seed; no user, host or path."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {"dr-plugin": __version__, **{name: _version(name) for name in _PACKAGES}},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **settings,
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # faiss may come as another package, and not at all
        return "not installed"


def _processor() -> str:
    """The processor's model; /proc/cpuinfo has the fuller name on Linux."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
