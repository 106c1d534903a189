"""Files of triplets: the paper's published list, and csv files with one triplet a line."""

import csv
import operator
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dr_plugin.checks import shown

Name = str | int

ROLES = ("query", "positive", "negative")
_LIST = "query_and_triplets.txt"


class TripletRow(NamedTuple):
    """One triplet as its file names it: paths, URLs or the numbers of images; ``place`` is its file and line."""

    text_query: str
    names: tuple[Name, Name, Name]
    place: str


def file_of(root: Path, triplets: Any) -> Path | None:
    """The file of triplets: the one that is named, or the folder's own; None where triplets are rows at hand."""
    if triplets is None:
        for name in ("triplets.csv", _LIST):
            if (root / name).is_file():
                return root / name
        raise ValueError(f"{root}: got no triplets.csv and no {_LIST}, expected one of them: pass triplets")
    if not isinstance(triplets, str | os.PathLike):
        return None
    path = Path(triplets).expanduser()
    return root / path if not path.is_file() and (root / path).is_file() else path


def given_triplets(root: Path, triplets: Any) -> tuple[list[TripletRow], bool]:
    """The triplets of a file or at hand, and whether they are in the published list's form."""
    file = file_of(root, triplets)
    return (rows_of(triplets), False) if file is None else (read_triplets(file), is_list(file))


def read_triplets(path: Path) -> list[TripletRow]:
    """The triplets of a file: one that ends in .txt is in the published list's form, any other a csv.

    Raises:
        ValueError: if the file is not there, is empty or is not of its form; the file and line are named.
    """
    if not path.is_file():
        raise ValueError(f"triplets: got {str(path)!r}, expected a file")
    rows = _read_list(path) if is_list(path) else _read_csv(path)
    if not rows:
        raise ValueError(f"{path}: got no triplet, expected at least one")
    return rows


def is_list(path: Path) -> bool:
    """Whether a file is taken for one in the published list's form: four lines a triplet."""
    return path.suffix.lower() == ".txt"


def rows_of(triplets: Any) -> list[TripletRow]:
    """Triplets at hand: a (T, 3) array of image numbers, or rows [text query,] query, positive, negative.

    Raises:
        ValueError: if there are none, or a row is not of that form.
    """
    rows = []
    given = triplets.tolist() if hasattr(triplets, "tolist") else triplets
    if not isinstance(given, Iterable):
        raise ValueError(f"triplets: got {shown(given)}, expected a file of triplets, or rows")
    for number, row in enumerate(given):
        place = f"triplets[{number}]"
        if isinstance(row, str) or not isinstance(row, Sequence) or len(row) not in (3, 4):
            raise ValueError(f"{place}: got {row!r}, expected [text query,] query, positive, negative")
        query, positive, negative = (_name(name, place) for name in row[-3:])
        text = str(row[0]) if len(row) == 4 else str(query)
        rows.append(TripletRow(text, (query, positive, negative), place))
    if not rows:
        raise ValueError("triplets: got none, expected at least one")
    return rows


def _name(name: Any, place: str) -> Name:
    if isinstance(name, str | os.PathLike):
        return os.fspath(name)
    try:
        return operator.index(name)
    except TypeError:
        raise ValueError(f"{place}: got {name!r}, expected a path or the number of an image") from None


def _read_csv(path: Path) -> list[TripletRow]:
    """A header, then one triplet a line; without a column text_query, each query stands for its own."""
    lines = _csv_lines(path)
    _, header = next(lines, (1, []))
    columns = [name.strip() for name in header]
    if not columns:
        raise ValueError(f"{path}: got an empty file, expected a header: text_query,{','.join(ROLES)}")
    with_text = sorted(columns) != sorted(ROLES)  # any other column asks for it: it may be misspelt
    wanted = ("text_query", *ROLES) if with_text else ROLES
    if wrong := [name for name in wanted if columns.count(name) != 1]:
        raise ValueError(
            f"{path}:1: got columns {', '.join(columns)}, expected text_query, {', '.join(ROLES)}, once each, "
            f"with or without others; wrong: {', '.join(wrong)}"
        )
    at = [columns.index(name) for name in wanted]
    rows = []
    for number, line in lines:
        if len(line) != len(columns):
            raise ValueError(
                f"{path}:{number}: got {len(line)} cells, expected {len(columns)} as in the header: "
                "put cells that hold a comma into quotes"
            )
        if empty := [name for name, index in zip(wanted, at, strict=True) if not line[index].strip()]:
            raise ValueError(f"{path}:{number}: got nothing for {', '.join(empty)}, expected a value")
        query, positive, negative = (line[index] for index in at[-3:])
        text = line[at[0]] if with_text else query
        rows.append(TripletRow(text, (query, positive, negative), f"{path}:{number}"))
    return rows


def _csv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The lines that are not empty, with their numbers."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, strict=True)
        try:
            for line in reader:
                if line:
                    yield reader.line_num, line
        except csv.Error as error:
            raise ValueError(f"{path}:{reader.line_num}: got {error}, expected a csv file") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: got {error}, expected a csv file in UTF-8") from error


def _read_list(path: Path) -> list[TripletRow]:
    """Repeating four lines: text query, query URL, positive URL, negative URL."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().split("\n")]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: got {error}, expected a text file in UTF-8") from error
    if lines == [""]:
        return []
    form = "expected four lines a triplet: text query, query URL, positive URL, negative URL"
    for number, line in enumerate(lines):
        if not line or ("://" in line) != bool(number % 4):
            raise ValueError(f"{path}:{number + 1}: got {line[:80]!r} as line {number % 4 + 1} of 4, {form}")
    if len(lines) % 4:
        raise ValueError(f"{path}:{len(lines)}: got the end after {len(lines) % 4} of 4 lines, {form}")
    return [
        TripletRow(lines[at], (lines[at + 1], lines[at + 2], lines[at + 3]), f"{path}:{at + 1}")
        for at in range(0, len(lines), 4)
    ]
