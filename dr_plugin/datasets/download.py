"""Fetch a data set's archive: resumable, checked, and unpacked whole or not at all."""

import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tqdm import tqdm  # type: ignore[import-untyped]

from dr_plugin.atomic import locked, settle

from .archive import DownloadError, Progress, check_space, unpack

_CHUNK = 1 << 18
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})  # statuses worth another attempt


class _Interrupted(Exception):
    """An attempt failed in a way that another one may mend."""


class _Refused(Exception):
    """An attempt failed in a way that another one would not mend."""


def fetch_archive(
    url: str,
    root: Path,
    *,
    folder: str,
    size: int,
    sha256: str,
    progress: Progress | None = None,
    attempts: int = 5,
    timeout: float = 30.0,
    backoff: float = 0.5,
) -> None:
    """Make ``root/folder`` from the archive at ``url``, unless it is there already (and not empty).

    The archive goes to ``root`` under its own name; one that lies there already is checked and used, and
    stays. One that was downloaded is removed once it is unpacked. Processes that call this at the same time
    take turns.

    Args:
        url: The archive, a zip or tar that holds the one folder ``folder``.
        root: Made if it does not exist.
        folder: What the archive holds.
        size: The archive's size in bytes.
        sha256: The archive's checksum.
        progress: Called as ``progress(task, done, total)``; bytes, then members.
        attempts: How often the download is tried before this call gives up.
        timeout: Seconds without an answer after which an attempt has failed.
        backoff: Seconds before the second attempt; doubled before each further one.
    Raises:
        DownloadError: if the archive cannot be had, is not the one expected, or is not safe to unpack.
    """
    target = root / folder
    if _filled(target):
        return
    archive = root / url.rpartition("/")[2]
    with locked(root, f".{archive.name}.lock"):
        if _filled(target):
            return
        downloaded = download(
            url,
            archive,
            size=size,
            sha256=sha256,
            progress=progress,
            attempts=attempts,
            timeout=timeout,
            backoff=backoff,
        )
        unpack(archive, root, folder, progress=progress)
        if downloaded:
            archive.unlink()


def download(
    url: str,
    path: Path,
    *,
    size: int,
    sha256: str,
    progress: Progress | None = None,
    attempts: int = 5,
    timeout: float = 30.0,
    backoff: float = 0.5,
) -> bool:
    """Fetch ``url`` into ``path``, which appears only when it is whole; return False if it was there already.

    What has come so far is kept in ``path.part``, and an attempt (of this call or of a later one) goes on
    from there if the server can. Whether the parts belong together needs no ETag: size and checksum decide,
    and a resumed file that fails the checksum is fetched once more from its start. Arguments as for
    ``fetch_archive``.

    Raises:
        DownloadError: if the file cannot be had or is not the one expected.
    """
    if path.exists():
        problem = _problem(path, size, sha256)
        if problem:
            raise DownloadError(
                f"{path} is not the file expected: {problem}. Remove it, or put the right one there"
            )
        return False
    part = path.with_name(f"{path.name}.part")
    check_space(path.parent, size - _size(part), f"download {url}")
    reason = ""
    for attempt in range(attempts):
        if attempt:
            time.sleep(backoff * 2 ** (attempt - 1))
        try:
            resumed = _fetch(url, part, size, timeout, progress)
        except _Interrupted as error:
            reason = str(error)
            continue
        except _Refused as error:
            reason = str(error)
            break
        problem = _problem(part, size, sha256)
        if not problem:
            os.replace(part, path)
            settle(path.parent)
            return True
        part.unlink()
        reason = f"it is not the file expected ({problem})"
        if not resumed:
            break
    kept = f"; {_size(part):,} of {size:,} bytes are kept, and the next call goes on from there"
    raise DownloadError(
        f"could not download {url}: {reason}{kept if _size(part) else ''}. Call again, "
        f"or put the file at {path} by hand: it is then checked and used"
    )


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Give a progress callback that shows one tqdm bar a task on stderr."""
    with ExitStack() as stack:
        bars: dict[str, Any] = {}

        def report(task: str, done: int, total: int | None) -> None:
            if task not in bars:
                bars[task] = stack.enter_context(tqdm(total=total, desc=task, unit_scale=True, unit=""))
            bars[task].update(done - bars[task].n)

        yield report


def _fetch(url: str, part: Path, size: int, timeout: float, progress: Progress | None) -> bool:
    """Bring ``part`` to its full size in one attempt; return whether it goes on from an earlier one."""
    if _size(part) > size:
        part.unlink()
    held = _size(part)
    if held == size:
        return True
    with _request(url, part, held, timeout) as response:
        resumed = response.status == 206
        _check_offer(response, part, held if resumed else 0, size)
        done = held if resumed else 0
        with open(part, "ab" if resumed else "wb") as file:
            while chunk := _read(response):
                done += len(chunk)
                if done > size:
                    break
                file.write(chunk)
                if progress is not None:
                    progress(f"download {url.rpartition('/')[2]}", done, size)
            file.flush()
            os.fsync(file.fileno())
    if done > size:
        part.unlink()
        raise _Refused(f"it is not the file expected (got more than {size:,} bytes)")
    if done < size:
        raise _Interrupted(f"the connection closed after {done:,} of {size:,} bytes")
    return resumed and held > 0


def _request(url: str, part: Path, held: int, timeout: float) -> HTTPResponse:
    headers = {"User-Agent": "dr_plugin"} | ({"Range": f"bytes={held}-"} if held else {})
    try:
        response: HTTPResponse = urlopen(Request(url, headers=headers), timeout=timeout)
    except HTTPError as error:
        error.close()
        if error.code == 416:  # the server's file ends before ours does: ours is not its beginning
            part.unlink(missing_ok=True)
        elif error.code not in _TRANSIENT:
            raise _Refused(f"the server answered {error.code} {error.reason}") from error
        raise _Interrupted(f"the server answered {error.code} {error.reason}") from error
    except (URLError, OSError, HTTPException) as error:
        raise _Interrupted(f"no answer from the server ({getattr(error, 'reason', error)})") from error
    return response


def _check_offer(response: HTTPResponse, part: Path, start: int, size: int) -> None:
    """Compare what the server is about to send with what is wanted, before the first byte is written."""
    if response.status == 206:
        content_range = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if content_range is None or int(content_range[1]) != start:
            part.unlink(missing_ok=True)
            raise _Interrupted("the server sent another part of the file than the one asked for")
        offered = content_range[2]
    else:
        offered = response.headers.get("Content-Length", "*")
    if offered not in ("*", str(size)):
        raise _Refused(f"it is not the file expected (got {offered} bytes, expected {size})")


def _read(response: HTTPResponse) -> bytes:
    try:
        return response.read(_CHUNK)
    except (OSError, HTTPException) as error:
        raise _Interrupted(f"the connection broke ({error or type(error).__name__})") from error


def _problem(path: Path, size: int, sha256: str) -> str | None:
    """Say in what a file differs from the one expected, if it does."""
    if _size(path) != size:
        return f"got {_size(path):,} bytes, expected {size:,}"
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return None if digest == sha256 else f"got SHA-256 {digest}, expected {sha256}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _filled(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())
