"""A recipe's text as plain data that remembers on which line each key stands.

The text is YAML 1.2 (core schema): ``1e-3`` is a number, ``no`` is text. Duplicate keys, tags, aliases and
keys that are no text are refused: every value of a recipe stands in one place, where it can be changed.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from .problems import Key, Problem, RecipeError, dotted, got, nearest

_MOST_BYTES = 100_000
_MOST_DIGITS = 100  # longer numbers are read as floats, as they would not fit any integer of a recipe
_DEEPEST = 30
_DEEP = re.compile(rf"([\[{{]\s*){{{_DEEPEST + 1}}}")
_NULL = {"", "~", "null", "Null", "NULL"}
_BOOL = {word: word.lower() == "true" for word in ("true", "True", "TRUE", "false", "False", "FALSE")}
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", re.ASCII)
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", re.ASCII
)


_CONTENT = (AliasEvent, ScalarEvent, MappingStartEvent, MappingEndEvent, SequenceStartEvent, SequenceEndEvent)


@dataclass
class Document:
    """A recipe before it is checked.

    Attributes:
        path: The file, as the user named it.
        data: Its content: dicts, lists, text, numbers, booleans and None.
        lines: For each key the line it stands on, counted from 1.
        settings: For each key that was given from outside, where: ``--set`` and its text, for example.
    """

    path: str
    data: dict[str, Any]
    lines: dict[Key, int] = field(default_factory=dict)
    settings: dict[Key, str] = field(default_factory=dict)

    def where(self, key: Key) -> str:
        """Where to look: ``file:line``, or what set the key, part of it or its holder from outside."""
        for known, text in self.settings.items():
            if key and known[: len(key)] == key:
                return text
        for length in range(len(key), 0, -1):
            part = key[:length]
            if part in self.settings:
                return self.settings[part]
            if part in self.lines:
                return f"{self.path}:{self.lines[part]}"
        return f"{self.path}:1"

    def place(self, key: Key) -> str:
        """Where ``key`` is to be found, and its name."""
        return f"{self.where(key)}: {dotted(key) or 'recipe'}"

    def error(self, problems: Sequence[Problem]) -> RecipeError:
        """The error that shows ``problems``, one a line, in the order of the file."""
        ordered = sorted(problems, key=lambda problem: self._order(problem.key))
        lines = [f"{self.place(item.key)}: {item.text}" for item in ordered]
        return RecipeError(*dict.fromkeys(lines))

    def _order(self, key: Key) -> int:
        return next((self.lines[key[:n]] for n in range(len(key), 0, -1) if key[:n] in self.lines), 0)


def read(path: str | os.PathLike[str]) -> Document:
    """Read a recipe file.

    Raises:
        RecipeError: if it cannot be read, is no YAML, or holds no mapping.
    """
    name = os.fspath(path)
    try:
        if os.path.getsize(name) > _MOST_BYTES:
            raise RecipeError(
                f"{name}:1: recipe: got more than {_MOST_BYTES} bytes, expected a recipe's YAML text"
            )
        text = Path(name).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{name}:1: recipe: got a file that is no text, expected YAML in UTF-8") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if isinstance(error, RecipeError):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise RecipeError(f"{name}:1: recipe: cannot be read: {reason}") from error
    return parse(text, name)


def parse(text: str, path: str) -> Document:
    """As ``read``, for text that is already at hand; ``path`` is the name to show in errors."""
    reader = _Reader(text, path)
    data = reader.document()
    if not isinstance(data, dict):
        what = "nothing" if data is None else got(data)
        raise RecipeError(f"{path}:1: recipe: got {what}, expected keys such as data:, trunk: and stages:")
    return Document(path, data, reader.lines)


def override(document: Document, settings: Sequence[str]) -> Document:
    """Merge ``key=value`` texts, as given to ``--set``, into ``document`` in place.

    A key is a path such as ``stages.1.epochs``, ``stages[1].epochs`` or, by the stage's name,
    ``stages.ranking.epochs``; a value is YAML. Where a mapping is missing on the way, or null, one is made: a
    name that does not exist is then found by the checks of the recipe, as in a file.

    Raises:
        RecipeError: if a text has no ``=``, a value is no YAML, or a path leads through a value without keys.
    """
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not all(_parts(name)):
            raise RecipeError(f"--set {setting}: got no key=value, expected such as stages.ranking.epochs=3")
        value = _Reader(text, f"--set {setting}", numbered=False).document()
        put(document, name, value, f"--set {setting}")
    return document


def put(document: Document, name: str, value: Any, place: str) -> Key:
    """Set the key that ``name`` is the path of, as `override` does, and remember ``place`` for errors; gives the key.

    Raises:
        RecipeError: if the path is empty somewhere, or leads through a value without keys.
    """
    parts = _parts(name)
    if not all(parts):
        raise RecipeError(f"{place}: got the key {got(name)}, expected a path such as stages.ranking.epochs")
    holder: Any = document.data
    key: Key = ()
    for part in parts[:-1]:
        step = _step(holder, part, key, place)
        if isinstance(holder, dict) and holder.get(part) is None:
            holder[part] = {}
        holder, key = holder[step], (*key, step)
    last = _step(holder, parts[-1], key, place)
    holder[last] = value
    key = (*key, last)
    document.lines = {known: line for known, line in document.lines.items() if known[: len(key)] != key}
    document.settings = {known: text for known, text in document.settings.items() if known[: len(key)] != key}
    document.settings[key] = place
    return key


def _parts(name: str) -> list[str]:
    return re.sub(r"\[(\w+)\]", r".\1", name.strip()).split(".")


def _step(holder: Any, part: str, key: Key, place: str) -> str | int:
    """The key or index that ``part`` means in ``holder``."""
    if isinstance(holder, dict):
        return part
    where = f"{place}: {dotted(key) or 'recipe'}"
    if not isinstance(holder, list):
        raise RecipeError(f"{where}: got {got(holder)}, expected something that has a key {part}")
    if re.fullmatch(r"[0-9]{1,6}", part, re.ASCII) and int(part) < len(holder):
        return int(part)
    names = [item["name"] for item in holder if isinstance(item, dict) and isinstance(item.get("name"), str)]
    matches = [i for i, item in enumerate(holder) if isinstance(item, dict) and item.get("name") == part]
    if len(matches) == 1:
        return matches[0]
    by_name = f" or one name of {', '.join(names)}" if names else ""
    raise RecipeError(
        f"{where}: got {part}, expected an index below {len(holder)}{by_name}{nearest(part, names)}"
    )


class _Reader:
    """Builds plain data from a YAML parser's events (its own constructors keep no lines and allow more)."""

    def __init__(self, text: str, path: str, *, numbered: bool = True) -> None:
        self.path, self.numbered, self._text = path, numbered, text
        self.lines: dict[Key, int] = {}
        self._events: Iterator[Event] = iter(())

    def document(self) -> Any:
        """The one document of the text; None if there is none."""
        if _DEEP.search(self._text):  # the parser would take minutes for some thousands
            self._refuse(0, f"got more than {_DEEPEST} levels, expected a recipe")
        try:
            self._events = self._content()
            first = next(self._events, None)
            data = None if first is None else self._value(first, ())
            next(self._events, None)  # reads on to what may come after the document
        except RecipeError:
            raise
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            self._refuse(mark.line if mark else 0, f"{error.problem or error.context}; expected valid YAML")
        except (YAMLError, ValueError) as error:
            reason = next(iter(str(error).splitlines()), "unreadable")
            line = self._text.count("\n", 0, getattr(error, "position", 0))
            self._refuse(line, f"{reason}; expected valid YAML")
        return data

    def _content(self) -> Iterator[Event]:
        """The parser's events one by one, so that too deep a text is refused before all of it is read."""
        documents = 0
        for event in YAML(typ="safe", pure=True).parse(self._text):
            documents += isinstance(event, DocumentStartEvent)
            if documents > 1:
                self._refuse(event.start_mark.line, "got a second document (---), expected one")
            if isinstance(event, _CONTENT):
                yield event

    def _value(self, event: Any, key: Key) -> Any:
        line = event.start_mark.line
        if isinstance(event, AliasEvent):
            self._refuse(
                line, f"got the alias *{event.anchor}, expected the values themselves: write them out", key
            )
        if event.tag is not None:
            self._refuse(line, f"got the tag {event.tag}, expected a value without a tag", key)
        if len(key) > _DEEPEST:
            self._refuse(line, f"got more than {_DEEPEST} levels, expected a recipe", key[:3])
        if isinstance(event, MappingStartEvent):
            return self._mapping(key)
        if isinstance(event, SequenceStartEvent):
            return self._sequence(key)
        return self._scalar(event, key)

    def _mapping(self, key: Key) -> dict[str, Any]:
        result: dict[str, Any] = {}
        while not isinstance(event := next(self._events), MappingEndEvent):
            line = event.start_mark.line
            if not isinstance(event, ScalarEvent):
                self._refuse(line, "got a key that is a list, a mapping or an alias, expected a name", key)
            name = self._value(event, key)
            if not isinstance(name, str):
                self._refuse(line, f"got the key {got(name)}, expected a name", key)
            if name in result:
                first = self.lines[(*key, name)]
                self._refuse(
                    line, f"got this key twice, expected it once; line {first} has it too", (*key, name)
                )
            self.lines[(*key, name)] = line + 1
            result[name] = self._value(next(self._events), (*key, name))
        return result

    def _sequence(self, key: Key) -> list[Any]:
        result: list[Any] = []
        while not isinstance(event := next(self._events), SequenceEndEvent):
            place = (*key, len(result))
            self.lines[place] = event.start_mark.line + 1
            result.append(self._value(event, place))
        return result

    def _scalar(self, event: ScalarEvent, key: Key) -> Any:
        text: str = event.value
        if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in text):
            self._refuse(
                event.start_mark.line, f"got {text!a}, expected text without NUL and lone surrogates", key
            )
        if event.style is not None:  # quoted or a block: text, whatever it looks like
            return text
        if text in _NULL:
            return None
        if text in _BOOL:
            return _BOOL[text]
        if _INTEGER.fullmatch(text) and len(text) <= _MOST_DIGITS:
            return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
        if _FLOAT.fullmatch(text):
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        return text

    def _refuse(self, line: int, text: str, key: Key = ()) -> NoReturn:
        place = f"{self.path}:{line + 1}" if self.numbered else self.path
        raise RecipeError(f"{place}: {dotted(key) or 'recipe'}: {text}")
