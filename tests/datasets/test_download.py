import hashlib
import io
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

import dr_plugin.datasets.download as module
from dr_plugin.datasets.archive import DownloadError
from dr_plugin.datasets.download import download, fetch_archive, progress_bar

CONTENT = random.Random(0).randbytes(600_000)  # more than two of the chunks that are read at a time
HALF = f"bytes={len(CONTENT) // 2}-"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def expected(content: bytes = CONTENT) -> dict:
    return {"size": len(content), "sha256": sha256(content), "backoff": 0.0}


@pytest.fixture
def server(file_server):
    file_server.content = CONTENT
    return file_server


@pytest.fixture
def path(tmp_path):
    return tmp_path / "archive.zip"


def part_of(path: Path) -> Path:
    return path.with_name("archive.zip.part")


def archive_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    return buffer.getvalue()


def test_download_gives_the_file_once(server, path):
    assert download(server.url, path, **expected()) is True
    assert path.read_bytes() == CONTENT
    assert os.listdir(path.parent) == ["archive.zip"]
    assert download(server.url, path, **expected()) is False
    assert server.ranges == [None]


def test_download_reports_bytes_up_to_the_size(server, path):
    server.script = ["break"]
    calls = []
    download(server.url, path, **expected(), progress=lambda *call: calls.append(call))
    assert {(task, total) for task, _, total in calls} == {("download archive.zip", len(CONTENT))}
    done = [done for _, done, _ in calls]
    assert done == sorted(done)
    assert done[-1] == len(CONTENT)


@pytest.mark.parametrize(
    ("script", "ranges"),
    [
        (["break"], [None, HALF]),  # goes on from where it broke
        (["break", 503, "silent"], [None, HALF, HALF, HALF]),
        (["break", "full"], [None, HALF]),  # a server without ranges: from the start
        (["break", "shift"], [None, HALF, None]),  # a server that sends another part
        (["break", 416], [None, HALF, None]),
        (["break", "corrupt"], [None, HALF, None]),  # a resumed file that fails the checksum
        ([500, 429], [None, None, None]),
    ],
)
def test_download_recovers(server, path, script, ranges):
    server.script = script
    assert download(server.url, path, **expected(), timeout=1.0)
    assert path.read_bytes() == CONTENT
    assert server.ranges == ranges
    assert os.listdir(path.parent) == ["archive.zip"]


def test_download_gives_up_after_its_attempts_and_goes_on_in_the_next_call(server, path):
    server.script = ["break", "break", "break"]
    with pytest.raises(
        DownloadError, match=r"closed after 525,000 of 600,000 bytes.*525,000 of 600,000.* kept"
    ):
        download(server.url, path, **expected(), attempts=3)
    assert os.listdir(path.parent) == ["archive.zip.part"]
    assert download(server.url, path, **expected())
    assert path.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=300000-", "bytes=450000-", "bytes=525000-"]


@pytest.mark.parametrize(
    ("held", "ranges"),
    [
        (b"", [None]),
        (CONTENT, []),  # killed between the last byte and the renaming
        (CONTENT + b"more", [None]),
        (b"of another file", ["bytes=15-", None]),
        (bytes(len(CONTENT)), [None]),
    ],
    ids=["empty", "whole", "longer", "foreign", "foreign of the same size"],
)
def test_download_trusts_no_partial_file(server, path, held, ranges):
    part_of(path).write_bytes(held)
    assert download(server.url, path, **expected())
    assert path.read_bytes() == CONTENT
    assert server.ranges == ranges


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (["corrupt"], "not the file expected .*got SHA-256 .*expected"),
        (["endless"], "not the file expected .*got more than 600,000 bytes"),
        ([404], "the server answered 404"),
        ([403], "the server answered 403"),
    ],
)
def test_download_does_not_repeat_what_cannot_help(server, path, script, message):
    server.script = script
    with pytest.raises(DownloadError, match=f"{message}.*or put the file at {path} by hand"):
        download(server.url, path, **expected())
    assert len(server.ranges) == 1
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("held", [b"", CONTENT[:1000]])
def test_download_refuses_a_file_of_the_wrong_size_before_it_takes_a_byte(server, path, held):
    part_of(path).write_bytes(held)
    server.content = CONTENT[:-100]
    with pytest.raises(DownloadError, match=r"not the file expected \(got 599900 bytes, expected 600000\)"):
        download(server.url, path, **expected())
    assert len(server.ranges) == 1
    assert part_of(path).read_bytes() == held


def test_download_without_a_network_says_where_to_put_the_file(path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/archive.zip"
        with pytest.raises(
            DownloadError, match=f"no answer from the server.*or put the file at {path} by hand"
        ):
            download(url, path, **expected(), attempts=2)
    assert os.listdir(path.parent) == []


def test_download_waits_for_an_answer_no_longer_than_its_timeout(server, path):
    server.script = ["silent"]
    with pytest.raises(DownloadError, match="timed out"):
        download(server.url, path, **expected(), attempts=1, timeout=0.1)


def test_download_waits_longer_before_each_attempt(server, path, monkeypatch):
    waits = []
    monkeypatch.setattr(module.time, "sleep", waits.append)
    server.script = [503, 503, 503, 503, 503]
    with pytest.raises(DownloadError, match="503"):
        download(server.url, path, **{**expected(), "backoff": 0.5})
    assert waits == [0.5, 1.0, 2.0, 4.0]


def test_download_leaves_a_wrong_file_that_was_put_there(server, path):
    path.write_bytes(b"something else")
    with pytest.raises(DownloadError, match=r"is not the file expected: got 14 bytes.*Remove it"):
        download(server.url, path, **expected())
    assert path.read_bytes() == b"something else"
    assert server.ranges == []


def test_download_refuses_when_the_disk_is_too_full(server, path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(1 << 40, 1 << 40, 500_000))
    with pytest.raises(DownloadError, match=r"not enough space to download.*500,000 free.*600,000"):
        download(server.url, path, **expected())
    assert server.ranges == []
    part_of(path).write_bytes(CONTENT[:200_000])  # what is there already needs no more space
    assert download(server.url, path, **expected())


FILES = {f"data/{i}": bytes([i % 256]) * 2000 for i in range(300)}


def fetch(server, root, **options):
    fetch_archive(server.url, root, folder="data", **expected(server.content), **options)


def read_files(root: Path) -> dict[str, bytes]:
    return {f"data/{path.name}": path.read_bytes() for path in (root / "data").iterdir()}


def visible(root: Path) -> list[str]:
    return sorted(name for name in os.listdir(root) if not name.startswith("."))  # less the lock file


def test_fetch_archive_leaves_the_folder_only(file_server, tmp_path):
    file_server.content = archive_of(FILES)
    root = tmp_path / "new" / "root"
    fetch(file_server, root)
    assert read_files(root) == FILES
    assert visible(root) == ["data"]
    fetch(file_server, root)
    assert file_server.ranges == [None]


def test_fetch_archive_ignores_stray_files_and_fills_an_empty_folder(file_server, tmp_path):
    file_server.content = archive_of(FILES)
    (tmp_path / "stray.txt").touch()
    (tmp_path / "data").mkdir()
    fetch(file_server, tmp_path)
    assert read_files(tmp_path) == FILES


def test_fetch_archive_uses_and_keeps_one_put_there_by_hand(file_server, tmp_path):
    file_server.content = archive_of(FILES)
    (tmp_path / "archive.zip").write_bytes(file_server.content)
    fetch(file_server, tmp_path)
    assert file_server.ranges == []
    assert visible(tmp_path) == ["archive.zip", "data"]


def test_fetch_archive_unpacks_nothing_that_climbs_out(file_server, tmp_path):
    file_server.content = archive_of({**FILES, "data/../../outside": b"evil"})
    root = tmp_path / "root"
    with pytest.raises(DownloadError, match="not safe to unpack"):
        fetch(file_server, root)
    assert os.listdir(tmp_path) == ["root"]
    assert visible(root) == ["archive.zip"]


def test_fetch_archive_called_twice_at_once_downloads_once(file_server, tmp_path):
    file_server.content = archive_of(FILES)
    threads = [threading.Thread(target=fetch, args=(file_server, tmp_path)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert file_server.ranges == [None]
    assert read_files(tmp_path) == FILES


# The child loads the two modules under a bare package, which spares it the import of torch.
KILLED = """
import os, signal, sys, types
from pathlib import Path
folder, url, root, size, sha256, task = sys.argv[1:]
package = types.ModuleType("datasets")
package.__path__ = [folder]
sys.modules["datasets"] = package
from datasets.download import fetch_archive
def progress(name, done, total):
    if name.startswith(task) and done < total:
        os.kill(os.getpid(), signal.SIGKILL)
fetch_archive(url, Path(root), folder="data", size=int(size), sha256=sha256, progress=progress)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
@pytest.mark.parametrize(
    ("task", "left"),
    [("download", ["archive.zip.part"]), ("unpack", ["archive.zip", "data.unpacking"])],
)
def test_fetch_archive_recovers_from_a_kill(file_server, tmp_path, task, left):
    file_server.content = archive_of(FILES)
    size, digest = str(len(file_server.content)), sha256(file_server.content)
    folder = str(Path(module.__file__).parent)
    command = [sys.executable, "-c", KILLED, folder, file_server.url, str(tmp_path), size, digest, task]
    assert subprocess.run(command, check=False, timeout=60).returncode == -signal.SIGKILL
    assert visible(tmp_path) == left
    fetch(file_server, tmp_path)
    assert read_files(tmp_path) == FILES


def test_progress_bar_shows_each_task_on_stderr(capsys):
    with progress_bar() as report:
        for task in ("download x", "unpack x"):
            report(task, 5, 10)
            report(task, 10, 10)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "download x: 100%" in captured.err
    assert "unpack x: 100%" in captured.err
