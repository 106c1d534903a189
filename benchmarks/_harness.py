"""What the benchmark scripts share: interleaved timing, peak memory, and a table of ratios."""

import os
import platform
import statistics
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


def peak_memory(function: Callable[[], object]) -> int:
    """Bytes by which the process's peak resident memory rose above its start while the function ran (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to the present resident size
    start = _status("VmRSS")
    function()
    return max(0, _status("VmHWM") - start)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    """The rows as a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)
