"""Files that are either whole or not there: a temporary sibling, flushed to disk, then renamed over the old one."""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_ADVICE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EFBIG: "raise the limit on the size of files",
    errno.EROFS: "choose another folder",
    errno.EACCES: "choose another folder, or make it writable",
    errno.EPERM: "choose another folder, or make it writable",
}


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
        about = [str(path), str(_temporary(path)), *map(str, path.parents)]
        if error.errno is None or (error.filename is not None and str(error.filename) not in about):
            raise
        reason = (error.strerror or type(error).__name__).lower()
        told = WriteError(
            f"{path}: cannot be written ({reason}); {_ADVICE.get(error.errno, 'see to the disk')}, and go on: what "
            "was written before is as it was"
        )
        told.errno = error.errno
        raise told from error


@contextmanager
def replacing(path: Path, *, keep: Path | None = None) -> Iterator[IO[bytes]]:
    """A binary file that takes ``path``'s place when the block ends well, and leaves it alone when it does not.

    Args:
        path: The file.
        keep: Another name, which the file that ``path`` was until then gets; ``path`` is there at every moment.
    Raises:
        WriteError: if it cannot be written.
    """
    temporary = _temporary(path)
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
    link.unlink(missing_ok=True)  # if both named one file already, the line above did nothing at all


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically, indented."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".partial")
