"""Markdown of the recipe reference, from the schema itself: nothing in it is written twice."""

import importlib
import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from dr_plugin.experiments import families

Node = dict[str, Any]


def reference(model: type[BaseModel], title: str, depth: int = 2) -> str:
    """A heading and a table of keys for the model, under this title, and for each section within it."""
    schema = model.model_json_schema()
    return "\n".join(_sections(title, schema, schema.get("$defs", {}), depth))


def slots(depth: int = 2) -> str:
    """For each kind of slot the names that it knows, ours with a link, and what a recipe may not say there."""
    lines: list[str] = []
    for kind, about in families.KINDS.items():
        names = families.names(kind)
        modules = [module for module in about.modules if module.startswith("dr_plugin.")]
        ours = {
            name: f"{{py:obj}}`{name} <{module}.{name}>`" for module in modules for name in _public(module)
        }
        lines += [f"{'#' * depth} {kind}", ""]
        for title, found in (
            ("Ours", [ours[name] for name in names if name in ours]),
            ("By name, too", [f"`{name}`" for name in names if name not in ours]),
            ("Supplied by the run, not by the recipe", [f"`{name}`" for name in sorted(about.supplied)]),
        ):
            if found:
                lines.append(f"- {title}: {', '.join(found)}.")
        wanted = about.described or " or ".join(base.__name__ for base in about.bases)
        lines += [f"- Yours, by dotted path: {_article(wanted)}.", ""]
    return "\n".join(lines)


def _public(module: str) -> list[str]:
    return list(importlib.import_module(module).__all__)


def _article(wanted: str) -> str:
    return wanted if wanted.startswith("a class") else f"a class that derives from {wanted}"


def _sections(title: str, schema: Node, definitions: dict[str, Node], depth: int) -> Iterator[str]:
    """The tables of the schema's root and, in the order in which they are met, of the sections below it."""
    waiting, seen = [(title, schema)], set()
    while waiting:
        name, node = waiting.pop(0)
        yield f"({_label(title, name)})=\n{'#' * depth} {name}\n\n{_text(node.get('description', ''))}\n"
        children: list[tuple[str, Node]] = []
        yield "| key | value | default | what |\n|---|---|---|---|"
        for key, field in node.get("properties", {}).items():
            described = field.get("description") or _inherited(field, definitions)
            inner = [found for found in _references(field) if found != "Slot"]
            path = key if name == title else f"{name}.{key}"
            for found in inner:
                if found not in seen:
                    seen.add(found)
                    inner_path = f"{path}, kind {_kind(definitions[found])}" if len(inner) > 1 else path
                    definitions[found]["path"] = inner_path
                    children.append((inner_path, definitions[found]))
            default = "required" if key in node.get("required", []) else _default(field)
            yield f"| `{key}` | {_value(field, title, definitions)} | {default} | {_text(described)} |"
        yield ""
        waiting = [*children, *waiting]


def _label(title: str, path: str) -> str:
    return f"{title}-{path}".replace(", kind ", "-").replace(".", "-")


def _kind(section: Node) -> str:
    return str(section["properties"]["kind"]["const"])


def _references(field: Node) -> list[str]:
    """Names of the sections that a field's value may hold, wherever in it."""
    if "$ref" in field:
        return [field["$ref"].removeprefix("#/$defs/")]
    inner = [
        field.get("items"),
        field.get("additionalProperties"),
        *field.get("anyOf", []),
        *field.get("oneOf", []),
    ]
    return [found for one in inner if isinstance(one, dict) for found in _references(one)]


def _value(field: Node, title: str, definitions: dict[str, Node]) -> str:
    """What may stand there, in words."""
    if "$ref" in field:
        name = field["$ref"].removeprefix("#/$defs/")
        path = definitions[name].get("path", "")
        return "a slot" if name == "Slot" else f"[{path}](#{_label(title, path)})"
    if choices := field.get("anyOf") or field.get("oneOf"):
        return " or ".join(_value(choice, title, definitions) for choice in choices)
    if "const" in field or "enum" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        return _list(field, title, definitions)
    words = {
        "integer": "whole number",
        "number": "number",
        "string": "text",
        "boolean": "`true` or `false`",
        "null": "`null`",
        "object": "mapping",
    }
    return words.get(field.get("type", ""), "any value") + _range(field)


def _list(field: Node, title: str, definitions: dict[str, Node]) -> str:
    if "prefixItems" in field:
        return f"list of {len(field['prefixItems'])} numbers"
    least = f" ≥ {field['minItems']}" if field.get("minItems") else ""
    return f"list{least} of {_value(field.get('items', {}), title, definitions)}"


def _range(field: Node) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return ",".join(f" {sign} {field[name]:,}" for name, sign in signs.items() if name in field)


def _default(field: Node) -> str:
    """As YAML has it."""
    default = field.get("default")
    if isinstance(default, dict) and "$ref" in field:
        return "those of its keys"
    return f"`{json.dumps(default) if not isinstance(default, str) else default}`"


def _inherited(field: Node, definitions: dict[str, Node]) -> str:
    """The section's own description: pydantic leaves a field's out where the two are the same."""
    sections = _references(field)
    return str(definitions[sections[0]].get("description", "")) if sections else ""


def _text(description: str) -> str:
    """On one line, and safe in a table."""
    return " ".join(description.replace("``", "`").split()).replace("|", "\\|")
