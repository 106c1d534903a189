"""Directives whose Markdown is made when the site is built: the recipe reference, and what lies in results/.

Markdown that a parser did not take for a directive ends on the page as text; that is a warning, which fails the build.
"""

import importlib
import re
from pathlib import Path
from typing import Any

import recipe_tables
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

RESULTS = Path(__file__).parents[2] / "results"

_DIRECTIVE = re.compile(r":::|```|~~~|\.\. [\w:-]+::")
_MEANT = (nodes.FixedTextElement, nodes.literal, nodes.raw, nodes.comment)  # may show one
_logger = logging.getLogger(__name__)


class RecipeReference(SphinxDirective):
    """Every key of the pydantic model at a dotted path, under a title."""

    required_arguments = 2

    def run(self) -> list[nodes.Node]:
        module, _, name = self.arguments[0].rpartition(".")
        imported = importlib.import_module(module)
        self.env.note_dependency(str(imported.__file__))
        return self.parse_text_to_nodes(
            recipe_tables.reference(getattr(imported, name), self.arguments[1], depth=3),
            allow_section_headings=True,
        )


class RecipeSlots(SphinxDirective):
    """Every kind of slot, and the names that it knows."""

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(recipe_tables.slots(depth=3), allow_section_headings=True)


class ResultFiles(SphinxDirective):
    """A section for each folder of results/: its recipe, its tables, its other files to download."""

    def run(self) -> list[nodes.Node]:
        text = "\n".join(_folder(path) for path in sorted(RESULTS.iterdir()) if path.is_dir())
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def _folder(folder: Path) -> str:
    lines = [f"({folder.name})=", f"### {folder.name}", ""]
    for path in sorted(folder.rglob("*")):
        inside, relative = path.relative_to(folder), path.relative_to(RESULTS)
        if path.name == "recipe.yaml":
            lines += [
                f"```{{literalinclude}} ../results/{relative}",
                ":language: yaml",
                f":caption: {inside}",
                "```",
            ]
        elif path.is_file():
            lines.append(f"- {{download}}`{inside} <../results/{relative}>`")
        lines.append("")
    return "\n".join(lines)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives, and let formulas in docstrings have bars."""
    app.add_directive("recipe-reference", RecipeReference)
    app.add_directive("recipe-slots", RecipeSlots)
    app.add_directive("result-files", ResultFiles)
    app.connect("autodoc-process-docstring", _bars)
    app.connect("autodoc-skip-member", _not_ours)
    app.connect("doctree-resolved", _check_parsed)
    return {"parallel_read_safe": True}


def _bars(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """``|x|`` in a formula is an absolute value, where reStructuredText would look for a substitution."""
    lines[:] = ["`".join(_escaped(line.split("`"))) for line in lines]


def _escaped(parts: list[str]) -> list[str]:
    """Every second part of a line is code."""
    return [part if index % 2 else part.replace("|", r"\|") for index, part in enumerate(parts)]


def _check_parsed(app: Sphinx, page: nodes.document, name: str) -> None:
    """Warn of a directive that would be printed instead of carried out."""
    for text in page.findall(nodes.Text):
        if (found := _DIRECTIVE.search(text)) and not _is_meant(text):
            line = text[found.start() :].splitlines()[0]
            _logger.warning("the page shows %r as text", line, location=name, type="directives")


def _is_meant(node: nodes.Node) -> bool:
    return node.parent is not None and (isinstance(node.parent, _MEANT) or _is_meant(node.parent))


def _not_ours(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """scikit-learn writes ``set_..._request`` into every transformer."""
    return True if name.startswith("set_") and name.endswith("_request") else None
