"""Where the images lie that a file of triplets names, and which of them are the same."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from dr_plugin.checks import shown

from .base import first_few
from .triplet_files import Name, TripletRow

Images = str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]] | Sequence[str | os.PathLike[str]]


class LocatedTriplet(NamedTuple):
    """A triplet whose files were found."""

    text_query: str
    paths: tuple[str, str, str]  # query, positive, negative


class ImageFiles:
    """Finds the file of an image that a row names.

    Args:
        images: Numbered paths, a mapping from names to paths, or a folder; None: the folders alone.
        folders: Where relative paths begin, the first that has the file.
        urls: All names of a published list, whose images are files somewhere below a folder: named by the hex
            digest (SHA-1, SHA-256 or MD5) of the URL with any ending, or by the URL's last part where no other
            URL of the list ends in the same. None for other triplets.
    """

    def __init__(
        self, images: Images | None, folders: Iterable[Path], urls: Iterable[Name] | None = None
    ) -> None:
        self._folders = list(folders)
        self._numbered: Sequence[Any] | None = None
        self._named: Mapping[str, Any] | None = None
        if isinstance(images, Mapping):
            self._named = images
        elif images is not None and not isinstance(images, str | os.PathLike):
            if not isinstance(images, Sequence):
                raise ValueError(
                    f"images: got {shown(images)}, expected paths, a mapping to paths or a folder"
                )
            self._numbered = images
        elif urls is not None:
            folder = self._folders[0] if images is None else Path(images).expanduser()
            self._named = _downloaded(folder, urls)
        elif images is not None:
            self._folders = [Path(images).expanduser()]

    def find(self, name: Name, place: str) -> str | None:
        """The path of the image's file; None where there is no such file.

        Raises:
            ValueError: if a number is given where there is nothing numbered, or is out of range.
        """
        path: str | os.PathLike[str] | None
        if self._numbered is not None:
            path = self._numbered[_number(name, len(self._numbered), place)]
        elif isinstance(name, int):
            raise ValueError(
                f"{place}: got image number {name}, expected a path: pass images, the paths that are numbered, "
                "such as another data set's paths"
            )
        else:
            path = name if self._named is None else self._named.get(name)
        if path is None:
            return None
        places = (os.path.normpath(folder / Path(path).expanduser()) for folder in self._folders)
        return next((place for place in places if os.path.isfile(place)), None)


def _number(name: Name, count: int, place: str) -> int:
    try:
        number = int(name)
    except ValueError:
        number = -1
    if not 0 <= number < count:
        raise ValueError(
            f"{place}: got {name!r}, expected the number of an image, 0 to {count - 1}: images are numbered"
        )
    return number


def _downloaded(folder: Path, urls: Iterable[Name]) -> dict[str, str]:
    """The files of a folder, by the URL that each was downloaded from."""
    if not folder.is_dir():
        raise ValueError(f"images: got {str(folder)!r}, expected a folder of downloaded images")
    files: dict[str, str] = {}
    for parent, folders, names in os.walk(folder.resolve()):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(parent, name)
            files.setdefault(name, path)
            files.setdefault(os.path.splitext(name)[0].lower(), path)
    distinct = list(dict.fromkeys(map(str, urls)))
    last_parts = {url: unquote(urlsplit(url).path.rpartition("/")[2]) for url in distinct}
    used = Counter(last_parts.values())
    found: dict[str, str] = {}
    for url in distinct:
        digests = (hashlib.new(kind, url.encode()).hexdigest() for kind in ("sha1", "sha256", "md5"))
        hashed = next((files[digest] for digest in digests if digest in files), None)
        if hashed is not None:
            found[url] = hashed
        elif last_parts[url] in files and used[last_parts[url]] == 1:
            found[url] = files[last_parts[url]]
    return found


def content_ids(paths: Sequence[str]) -> dict[str, int]:
    """A number for each file, the same for files with the same bytes; only files of one size are read."""
    sizes = {path: os.path.getsize(path) for path in paths}
    shared = Counter(sizes.values())
    numbers: dict[Any, int] = {}
    ids = {}
    for path, size in sizes.items():
        key: Any = path
        if shared[size] > 1:
            with open(path, "rb") as file:
                key = hashlib.file_digest(file, "sha256").digest()
        ids[path] = numbers.setdefault(key, len(numbers))
    return ids


def missing_images(missing: Mapping[Name, str], images: int) -> str:
    """What an error says of the images whose files are not there, each with the place that names it."""
    named = first_few([f"{name} ({place})" for name, place in missing.items()], limit=5)
    return (
        f"got {len(missing)} of {images} images without a file: {named}; expected all: get them, or pass "
        'missing="skip" to leave out the triplets that name them'
    )


def locate(rows: list[TripletRow], files: ImageFiles) -> tuple[list[LocatedTriplet], dict[Name, str]]:
    """The triplets whose images all have files; the names without one, each with its first place."""
    paths: dict[Name, str | None] = {}
    absent: dict[Name, str] = {}
    found = []
    for row in rows:
        for name in row.names:
            if name not in paths:
                paths[name] = files.find(name, row.place)
            if paths[name] is None:
                absent.setdefault(name, row.place)
        query, positive, negative = (paths[name] for name in row.names)
        if query is not None and positive is not None and negative is not None:
            found.append(LocatedTriplet(row.text_query, (query, positive, negative)))
    return found, absent
