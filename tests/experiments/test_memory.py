"""Peak memory: of a part of a process's life, whatever came before and between."""

from pathlib import Path

import pytest
import torch

from dr_plugin.experiments import memory
from dr_plugin.experiments.memory import PeakMemory, peak_of

CPU = torch.device("cpu")
MIB = 2**20
linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")


def use(mib: int) -> None:
    """Have so much resident, for a moment."""
    block = bytearray(mib * MIB)
    block[::1024] = b"x" * len(block[::1024])


@linux
def test_peak_is_that_between_start_and_stop() -> None:
    use(400)  # before: must not count
    peak = PeakMemory(CPU)
    assert peak.mib is None
    peak.start()
    use(100)
    peak.stop()
    first = peak.mib
    assert first is not None
    use(300)  # between: must not count either
    peak.start()
    peak.stop()
    assert peak.mib == first  # the maximum over the parts
    peak.start()
    use(200)
    peak.stop()
    assert 60 < peak.mib - first < 160


def test_resumed_stage_keeps_the_earlier_peak() -> None:
    peak = PeakMemory(CPU)
    peak.mib = 1e9
    peak.start()
    peak.stop()
    assert peak.mib == 1e9


def test_without_a_peak_to_forget_only_a_new_record_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([500 * MIB, 500 * MIB, 500 * MIB, 700 * MIB])
    monkeypatch.setattr(memory, "_forget_peak", lambda: False)
    monkeypatch.setattr(memory, "_highest", lambda: next(sizes))
    peak = PeakMemory(CPU)
    peak.start()
    peak.stop()
    assert peak.mib is None  # the process had more before
    peak.start()
    peak.stop()
    assert peak.mib == 700.0


def test_system_that_cannot_forget_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_PROCESS", tmp_path / "nothing")
    assert memory._forget_peak() is False


@pytest.mark.parametrize(("platform", "mib"), [("linux", 2048.0), ("darwin", 2.0), ("win32", 0.0)])
def test_units_of_the_system(monkeypatch: pytest.MonkeyPatch, platform: str, mib: float) -> None:
    resource = pytest.importorskip("resource")
    usage = type("Usage", (), {"ru_maxrss": 2 * MIB})
    monkeypatch.setattr(resource, "getrusage", lambda _: usage)
    monkeypatch.setattr(memory.sys, "platform", platform)
    assert memory._highest() / MIB == mib


def test_gpu_counts_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: calls.append(f"reset {device}"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * MIB)
    peak = PeakMemory(torch.device("cuda:1"))
    peak.start()
    peak.stop()
    assert (peak.mib, calls) == (3.0, ["reset cuda:1"])


def test_peak_of_the_stages_is_the_highest_that_is_known() -> None:
    stages = [{"peak_memory_mib": 3.0}, {"peak_memory_mib": None}, {}, {"peak_memory_mib": 4.5}]
    assert peak_of(stages, CPU) == {"peak_memory_mib": 4.5, "peak_memory_of": "process"}
    assert peak_of(stages[1:3], torch.device("cuda")) == {"peak_memory_mib": None, "peak_memory_of": "gpu"}
