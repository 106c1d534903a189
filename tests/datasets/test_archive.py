import io
import shutil
import tarfile
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from dr_plugin.datasets.archive import DownloadError, unpack

FILES = {"data/a.txt": b"first", "data/deep/er/b.bin": bytes(range(256)) * 50, "data/empty": b""}


def write_zip(path: Path, files: dict[str, bytes], **kwargs: int) -> Path:
    with zipfile.ZipFile(path, "w", **kwargs) as file:
        file.writestr("data/", b"")
        for name, content in files.items():
            info = zipfile.ZipInfo("placeholder")
            info.filename = name  # as it is: the constructor would clean it
            info.compress_type = kwargs.get("compression", zipfile.ZIP_STORED)
            file.writestr(info, content)
    return path


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as file:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def write_special_zip(path: Path, mode: int = 0, encrypted: bool = False) -> Path:
    write_zip(path, {"data/odd": b"../../outside"})
    with zipfile.ZipFile(path, "w") as file:
        info = zipfile.ZipInfo("data/odd")
        info.external_attr = mode << 16
        file.writestr(info, b"../../outside")
    if encrypted:
        raw = bytearray(path.read_bytes())
        for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            raw[raw.index(signature) + offset] |= 1
        path.write_bytes(raw)
    return path


def write_special_tar(path: Path, kind: bytes) -> Path:
    with tarfile.open(path, "w") as file:
        info = tarfile.TarInfo("data/odd")
        info.type, info.linkname = kind, "../../outside"
        file.addfile(info)
    return path


def tree(folder: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder two levels down, so that a name that climbs out of it would be seen in tmp_path."""
    root = tmp_path / "outer" / "root"
    root.mkdir(parents=True)
    return root


@pytest.mark.parametrize(
    ("write", "options"),
    [
        (write_zip, {}),
        (write_zip, {"compression": zipfile.ZIP_DEFLATED}),
        (write_tar, {}),
        (write_tar, {"mode": "w:gz"}),
        (write_tar, {"mode": "w:xz"}),
    ],
)
def test_unpack_gives_the_files_and_nothing_else(root, write, options):
    archive = write(root.parent / "archive", FILES, **options)
    unpack(archive, root, "data")
    assert {name: content for name, content in tree(root).items() if content is not None} == FILES
    assert sorted(path.name for path in root.iterdir()) == ["data"]


@pytest.mark.parametrize("write", [write_zip, write_tar])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../outside", "would land outside"),
        ("data/../../outside", "would land outside"),
        ("/nowhere/outside", "would land outside"),
        ("//server/share/outside", "would land outside"),
        ("C:\\outside", "would land outside"),
        ("C:outside", "would land outside"),
        ("data\\..\\..\\outside", "would land outside"),
        ("\\outside", "would land outside"),
        ("beside/outside", "does not lie in data/"),
        ("outside", "does not lie in data/"),
        ("data", "does not lie in data/"),  # a file in the folder's place
        (".", "does not lie in data/"),
    ],
)
def test_unpack_refuses_a_member_that_is_not_in_the_folder(root, tmp_path, write, name, message):
    archive = write(root.parent / "archive", {**FILES, name: b"evil"})
    before = tree(tmp_path)
    with pytest.raises(DownloadError, match=f"not safe to unpack.*{message}"):
        unpack(archive, root, "data")
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("write", "options", "message"),
    [
        (write_special_zip, {"mode": 0o120777}, "is a link"),
        (write_special_zip, {"mode": 0o020666}, "is a special file"),
        (write_special_zip, {"mode": 0o010666}, "is a special file"),
        (write_special_zip, {"encrypted": True}, "is an encrypted file"),
        (write_special_tar, {"kind": tarfile.SYMTYPE}, "is a link"),
        (write_special_tar, {"kind": tarfile.LNKTYPE}, "is a link"),
        (write_special_tar, {"kind": tarfile.CHRTYPE}, "is a special file"),
        (write_special_tar, {"kind": tarfile.BLKTYPE}, "is a special file"),
        (write_special_tar, {"kind": tarfile.FIFOTYPE}, "is a special file"),
    ],
)
def test_unpack_refuses_what_is_no_plain_file(root, tmp_path, write, options, message):
    archive = write(root.parent / "archive", **options)
    before = tree(tmp_path)
    with pytest.raises(DownloadError, match=message):
        unpack(archive, root, "data")
    assert tree(tmp_path) == before


def damaged(archive: Path, how: str) -> Path:
    raw = bytearray(archive.read_bytes())
    if how == "truncated":
        del raw[len(raw) * 2 // 3 :]
    else:
        raw[raw.index(b"first") if b"first" in raw else len(raw) // 2] ^= 0xFF
    archive.write_bytes(raw)
    return archive


@pytest.mark.parametrize(
    ("write", "options", "how"),
    [
        (write_zip, {}, "truncated"),
        (write_zip, {}, "flipped"),
        (write_tar, {}, "truncated"),
        (write_tar, {"mode": "w:gz"}, "truncated"),
        (write_tar, {"mode": "w:xz"}, "flipped"),
    ],
)
def test_unpack_leaves_nothing_of_a_damaged_archive(root, tmp_path, write, options, how):
    archive = damaged(write(root.parent / "archive", FILES, **options), how)
    before = tree(tmp_path)
    with pytest.raises(DownloadError, match=r"cannot unpack|neither a zip nor a tar"):
        unpack(archive, root, "data")
    assert tree(tmp_path) == before


def test_unpack_refuses_a_file_that_is_no_archive_and_an_empty_one(root):
    archive = root.parent / "archive"
    archive.write_text("<html>Please log in</html>")
    with pytest.raises(DownloadError, match="neither a zip nor a tar"):
        unpack(archive, root, "data")
    with zipfile.ZipFile(archive, "w"):
        pass
    with pytest.raises(DownloadError, match=r"is empty, expected the folder data/"):
        unpack(archive, root, "data")


def test_unpack_refuses_a_name_that_comes_twice(root, tmp_path):
    archive = root.parent / "archive"
    with tarfile.open(archive, "w") as file:
        for content in (b"one", b"two"):
            info = tarfile.TarInfo("data/a")
            info.size = 3
            file.addfile(info, io.BytesIO(content))
    before = tree(tmp_path)
    with pytest.raises(DownloadError, match=r"cannot unpack.*exists"):
        unpack(archive, root, "data")
    assert tree(tmp_path) == before


def test_unpack_refuses_when_the_disk_is_too_full(root, tmp_path, monkeypatch):
    archive = write_zip(root.parent / "archive", FILES)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(1 << 40, 1 << 40, 20_000))
    before = tree(tmp_path)
    with pytest.raises(DownloadError, match="not enough space to unpack archive: got 20,000 free bytes"):
        unpack(archive, root, "data")
    assert tree(tmp_path) == before


def test_unpack_that_is_interrupted_leaves_nothing(root):
    archive = write_zip(root.parent / "archive", {f"data/{i}": b"x" for i in range(250)})

    def interrupt(task: str, done: int, total: int | None) -> None:
        assert not (root / "data").exists()
        if done == 200:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack(archive, root, "data", progress=interrupt)
    assert list(root.iterdir()) == []


def test_unpack_clears_away_what_a_killed_process_left(root):
    (root / "data.unpacking" / "data").mkdir(parents=True)
    (root / "data.unpacking" / "data" / "stale").write_text("half")
    unpack(write_zip(root.parent / "archive", FILES), root, "data")
    assert {name: content for name, content in tree(root).items() if content is not None} == FILES
    assert sorted(path.name for path in root.iterdir()) == ["data"]


def test_unpack_never_merges_into_a_filled_folder(root):
    (root / "data").mkdir()
    (root / "data" / "mine").write_text("keep")
    with pytest.raises(DownloadError, match="cannot unpack"):
        unpack(write_zip(root.parent / "archive", FILES), root, "data")
    assert tree(root) == {"data": None, "data/mine": b"keep"}


def test_unpack_reports_progress_to_the_last_member(root):
    archive = write_zip(root.parent / "archive", {f"data/{i}": b"x" for i in range(249)})  # and the folder
    calls = []
    unpack(archive, root, "data", progress=lambda *call: calls.append(call))
    assert calls == [("unpack archive", done, 250) for done in (100, 200, 250)]
