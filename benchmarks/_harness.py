"""What the benchmark scripts share: interleaved timing, peak memory, and a table of ratios."""

import atexit
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch


def machine_line() -> str:
    """One line that says what the figures were measured on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {device}; "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def paired(
    functions: dict[str, Callable[[], object]], repeats: int = 7, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of each function, called in turn (A B A B ...), so that drift of the machine meets all alike."""
    for function in functions.values():
        for _ in range(warmup):
            function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Median of the pair-by-pair ratios."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def quartiles(numerator: Sequence[float], denominator: Sequence[float]) -> tuple[float, float]:
    """First and third quartile of the pair-by-pair ratios."""
    ratios = [a / b for a, b in zip(numerator, denominator, strict=True)]
    if len(ratios) == 1:
        return ratios[0], ratios[0]
    first, _, third = statistics.quantiles(ratios, n=4, method="inclusive")
    return first, third


def peak_memory(function: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Bytes by which the peak rose above what there was when the function started.

    On a GPU: of what PyTorch had allocated there. Else: of the process's resident memory (Linux).
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_allocated(device)
        function()
        return torch.cuda.max_memory_allocated(device) - start
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to the present resident size
    start = _status("VmRSS")
    function()
    return max(0, _status("VmHWM") - start)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def scratch_folder() -> Path:
    """A new folder, which is removed when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="benchmark-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    """The rows as a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)
