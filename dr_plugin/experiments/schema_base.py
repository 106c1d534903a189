"""What the sections of a recipe are made of: `Section`, `Slot`, the kinds of numbers, and how they are written."""

import io
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, Strict
from ruamel.yaml import YAML
from ruamel.yaml.representer import SafeRepresenter

Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Side = Annotated[int, Field(ge=1, le=2048)]
Text = Annotated[str, Field(min_length=1)]
# Strict(False) is for the outer type only: YAML has lists, not tuples. The numbers inside stay strict.
Pair = Annotated[tuple[Positive, Positive], Strict(False)]
Channels = Annotated[tuple[float, float, float], Strict(False)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]


class Section(BaseModel):
    """Part of a recipe: no key but its own, nothing converted in silence.

    The text below a field is its description in the recipe reference.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Slot(BaseModel):
    """A part that can be exchanged: ``{type: Name, **arguments}``; see `slots` for what ``type`` may name."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, use_attribute_docstrings=True)
    type: Text
    """A class of ours, else one of PML's or torch's of the same kind, else a dotted path to one of yours."""
    _place: str = PrivateAttr("")

    @property
    def arguments(self) -> dict[str, Any]:
        """All that stands beside ``type``."""
        return dict(self.__pydantic_extra__ or {})

    @property
    def place(self) -> str:
        """Where the slot stands, as ``file:line: key``, or its type where it comes from no file."""
        return self._place or self.type

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Slot):
            return NotImplemented
        return self.type == other.type and self.arguments == other.arguments

    __hash__ = None  # type: ignore[assignment]  # the arguments may hold lists


class _Representer(SafeRepresenter):
    """Quotes text with line breaks and control characters, which YAML would fold or drop."""

    def represent_str(self, data: str) -> Any:
        style = None if data.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Representer.add_representer(str, _Representer.represent_str)


def to_yaml(section: Section) -> str:
    """A section as YAML in block style, defaults included."""
    return plain_yaml(section.model_dump())


def plain_yaml(data: Mapping[str, Any]) -> str:
    """Plain data as YAML in block style, in their order."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.allow_unicode = True
    stream = io.StringIO()
    yaml.dump(data, stream)
    return stream.getvalue()
