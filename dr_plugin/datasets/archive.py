"""Unpack an archive from elsewhere: checked first, then whole or not at all."""

import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import IO

from dr_plugin.atomic import settle

# What the readers raise on damaged archives, and the system on names and disks that do not work out.
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    ValueError,
    OSError,
)

Progress = Callable[[str, int, int | None], None]


class DownloadError(OSError):
    """A file could not be had from elsewhere, or is not what it should be; the message says what to do."""


def unpack(archive: Path, root: Path, folder: str, *, progress: Progress | None = None) -> None:
    """Unpack a zip or tar archive that holds one folder, so that ``root/folder`` appears in one step.

    - Every member is checked before the first is written: plain files and folders only (no links, devices,
      encrypted files), no absolute name, drive, ``..`` or name outside ``folder/``, and enough free space.
    - Members go to ``root/folder.unpacking``, which is renamed at the end. A killed process leaves that name
      behind and the next call clears it away; a failure clears it away at once.
    - A damaged zip is found by its members' checksums. A tar has none: compare the archive's own checksum
      first, as ``fetch_archive`` does.

    Args:
        archive: The file to unpack.
        root: An existing folder; it must not hold ``folder`` yet, other than empty.
        folder: The one folder that the archive holds.
        progress: Called as ``progress(task, members done, members)``.
    Raises:
        DownloadError: if the archive is damaged, holds such a member, or does not fit on the disk.
    """
    staging = root / f"{folder}.unpacking"
    try:
        with _open_members(archive) as members:
            _check_members(archive, members, folder)
            blocks = sum(-(-member.size // 4096) + 1 for member in members)
            check_space(root, blocks * 4096, f"unpack {archive.name}")
            if staging.exists():
                shutil.rmtree(staging)
            _write(members, staging, f"unpack {archive.name}", progress)
        os.replace(staging / folder, root / folder)
        settle(root)
    except DownloadError:
        raise
    except _DAMAGE as error:
        raise DownloadError(f"cannot unpack {archive}: {error or type(error).__name__}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raise ``DownloadError`` unless ``needed`` bytes are free in ``folder``."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DownloadError(
            f"not enough space to {what}: got {free:,} free bytes in {folder}, expected {needed:,}"
        )


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    kind: str  # "file", "folder", or what makes it neither
    open: Callable[[], IO[bytes]]


@contextmanager
def _open_members(archive: Path) -> Iterator[list[_Member]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            yield [_zip_member(file, info) for info in file.infolist()]
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as file:
            yield [_tar_member(file, info) for info in file.getmembers()]
    else:
        raise DownloadError(f"{archive} is neither a zip nor a tar archive: remove it and fetch it again")


def _zip_member(file: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    mode = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was not made on Unix
    if info.flag_bits & 0x1:
        kind = "an encrypted file"
    elif mode not in (0, stat.S_IFREG, stat.S_IFDIR):
        kind = "a link" if mode == stat.S_IFLNK else "a special file"
    else:
        kind = "folder" if info.is_dir() or mode == stat.S_IFDIR else "file"
    return _Member(info.filename, info.file_size, kind, lambda: file.open(info))


def _tar_member(file: tarfile.TarFile, info: tarfile.TarInfo) -> _Member:
    if info.isfile():
        kind = "file"
    elif info.isdir():
        kind = "folder"
    else:
        kind = "a link" if info.issym() or info.islnk() else "a special file"

    def open_file() -> IO[bytes]:
        content = file.extractfile(info)
        if content is None:
            raise DownloadError(f"cannot unpack {info.name!r}: it is no plain file")
        return content

    return _Member(info.name, info.size, kind, open_file)


def _check_members(archive: Path, members: list[_Member], folder: str) -> None:
    for member in members:
        reason = _unsafe(member, folder)
        if reason:
            raise DownloadError(f"{archive} is not safe to unpack: the member {member.name!r} {reason}")
    if not members:
        raise DownloadError(f"{archive} is empty, expected the folder {folder}/")


def _unsafe(member: _Member, folder: str) -> str | None:
    """Say what is wrong with a member, if anything is."""
    path = PureWindowsPath(member.name)  # knows drives, and both slashes as separators: the strictest reading
    if path.drive or path.root or ".." in path.parts or "\0" in member.name:
        return "would land outside the folder"
    if path.parts[:1] != (folder,) or (member.kind == "file" and len(path.parts) == 1):
        return f"does not lie in {folder}/"
    if member.kind not in ("file", "folder"):
        return f"is {member.kind}, expected plain files and folders"
    return None


def _write(members: list[_Member], staging: Path, task: str, progress: Progress | None) -> None:
    made: set[Path] = set()
    for done, member in enumerate(members, start=1):
        target = staging.joinpath(*PureWindowsPath(member.name).parts)
        parent = target if member.kind == "folder" else target.parent
        if parent not in made:
            parent.mkdir(parents=True, exist_ok=True)
            made.add(parent)
        if member.kind == "file":
            with member.open() as source, open(target, "xb") as file:
                shutil.copyfileobj(source, file)
        if progress is not None and (done % 100 == 0 or done == len(members)):
            progress(task, done, len(members))
