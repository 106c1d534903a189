"""Files that are either whole or not there: a temporary sibling, flushed to disk, then renamed over the old one.

And what belongs to it: the words for a write that failed, folders that one process fills while others wait, and the
check of an archive's checksums.
"""

import errno
import json
import logging
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from filelock import FileLock

_LOG = logging.getLogger(__name__)
_ADVICE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EFBIG: "raise the limit on the size of files",
    errno.EROFS: "choose another folder",
    errno.EACCES: "choose another folder, or make it writable",
    errno.EPERM: "choose another folder, or make it writable",
}
_NO_SUCH_CALL = (errno.EINVAL, errno.ENOTSUP, errno.EACCES)  # not on this file system, or not for this user


class WriteError(OSError):
    """A file could not be written; what it held before is as it was."""


@contextmanager
def telling(path: Path) -> Iterator[None]:
    """Turn the system's error of writing ``path`` into one that names the file and says what to do.

    Raises:
        WriteError: instead of an ``OSError`` that is about ``path``, its temporary sibling or a folder above, or about
            no file at all, as that of a write is. Others, such as of a source that is read meanwhile, stay.
    """
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        if error.errno is None or not (error.filename is None or _is_about(Path(str(error.filename)), path)):
            raise
        reason = (error.strerror or type(error).__name__).lower()
        told = WriteError(
            f"{path}: cannot be written ({reason}); {_ADVICE.get(error.errno, 'see to the disk')}, and go on: what "
            "was written before is as it was"
        )
        told.errno = error.errno
        raise told from error


@contextmanager
def replacing(path: Path, *, keep: Path | None = None, shared: bool = False) -> Iterator[IO[bytes]]:
    """A binary file that takes ``path``'s place when the block ends well, and leaves it alone when it does not.

    Args:
        path: The file.
        keep: Another name, which the file that ``path`` was until then gets; ``path`` is there at every moment.
        shared: Whether other processes may write it at the same time; the last one's stays.
    Raises:
        WriteError: if it cannot be written.
    """
    temporary = _temporary(path, f".{os.getpid()}" if shared else "")
    with telling(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if keep is not None and path.exists():
                give_name(path, keep)
            os.replace(temporary, path)
            settle(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def give_name(path: Path, other: Path) -> None:
    """Let ``other`` be the file that ``path`` is: a second name for it, or a copy where there are no hard links."""
    link = _temporary(other)
    link.unlink(missing_ok=True)  # of a process that was killed right here
    try:
        os.link(path, link)
    except OSError:  # not on this file system; what else may be wrong, the copy will tell
        with replacing(other) as copy, open(path, "rb") as file:
            shutil.copyfileobj(file, copy)
        return
    os.replace(link, other)
    settle(other.parent)
    link.unlink(missing_ok=True)  # if both named one file already, the line above did nothing at all


def settle(folder: Path) -> None:
    """Flush the names in a folder to disk: a file that was renamed there is there after a loss of power, too."""
    if os.name == "nt":  # cannot open a folder
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_SUCH_CALL:
            raise


@contextmanager
def locked(folder: Path, name: str = ".lock") -> Iterator[None]:
    """A folder that this process fills while others wait; it is made if it is not there.

    Where the file system has no locks, a warning says so.

    Raises:
        WriteError: if nothing can be written there.
    """
    lock = FileLock(folder / name)
    with telling(folder / name):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except NotImplementedError:
            _LOG.warning("%s: this file system has no locks; see that no other process fills it", folder)
    try:
        yield
    finally:
        lock.release()


def check_archive(path: Path) -> None:
    """See that a zip archive is as torch wrote it: every member stored as it is, with the checksum that it was given.

    torch looks at neither when it reads. A compressed member could be a thousand times what the file is. A file without
    any checksums, as torch writes it under ``set_crc32_options(False)``, cannot be checked and passes.

    Raises:
        zipfile.BadZipFile: if it is not.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        for member in members:
            if member.compress_type != zipfile.ZIP_STORED:
                raise zipfile.BadZipFile(f"{member.filename!r} is compressed, which torch never does")
        if any(member.CRC for member in members) and (name := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"the checksum of {name!r} is wrong")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically, indented."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def _temporary(path: Path, mark: str = "") -> Path:
    return path.with_name(f"{path.name}{mark}.partial")


def _is_about(file: Path, path: Path) -> bool:
    """Whether a file is ``path``, a folder above, or a sibling whose name goes on from its, as the temporary's does."""
    sibling = file.parent == path.parent and file.name.startswith(f"{path.name}.")
    return file == path or file in path.parents or sibling
