"""What the documentation shows: its Python runs, its commands parse, its recipes load, no public name is left out."""

import ast
import importlib
import re
import shlex
import shutil
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from pydantic import BaseModel
from ruamel.yaml import YAML
from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

from dr_plugin.cli import main, run
from dr_plugin.evaluation.table_recipe import is_table, load_table
from dr_plugin.evaluation.table_schema import TableRecipe
from dr_plugin.experiments.families import KINDS
from dr_plugin.experiments.recipe import load_recipe
from dr_plugin.experiments.schema import Recipe

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SHARED = DOCS / "components" / "index.md"  # what the examples of the components' pages begin with
PAGES = sorted(DOCS.rglob("*.md"))
SHOWN = [ROOT / "README.md", *PAGES]
OTHERS = {"pip", "tox", "sphinx-build"}  # commands that are not ours, and are not tried
SHORT = ["--set", "limits.steps=2", "--device", "cpu"]


def commands(example):
    """Every command of a shell block is known; our own are parsed, and their recipes loaded."""
    for line in example.parsed.splitlines():
        for command in line.split("&&"):
            if words := shlex.split(command, comments=True):
                check(words, example.namespace)


def check(words, namespace):
    """A `dr` or `dr-run` line; one that names a recipe written by the page itself is run, briefly."""
    name, *arguments = words
    if name == "python":
        assert (ROOT / arguments[0]).is_file() or arguments[0] == "benchmarks/NAME.py", arguments[0]
        return
    if name not in ("dr", "dr-run"):
        assert name in OTHERS, f"{name}: a command that no test knows"
        return
    command = run if name == "dr-run" else main
    while isinstance(command, click.Group) and arguments:
        assert arguments[0] in command.commands, f"{' '.join(words)}: no such command"
        command, arguments = command.commands[arguments[0]], arguments[1:]
    given = command.make_context(name, list(arguments)).params  # raises where an option is unknown or missing
    if "recipes" in words:
        succeeds(command, arguments)
    if (
        "to" in given
        and given["run"].is_dir()
        and (given["to"].suffix != ".onnx" or find_spec("onnxruntime"))
    ):
        succeeds(command, arguments)
    if "compare" in words and given["recipes"]:  # not only may each of them be loaded: they can be compared
        placed = [str(ROOT / word) if word.startswith("recipes/") else word for word in arguments]
        succeeds(command, [*placed, "--check"])
    for recipe in recipes_in(given):
        source = ROOT / recipe if recipe.startswith("recipes/") else recipe
        (load_table if is_table(source) else load_recipe)(source, given.get("overrides") or [])
        if recipe in namespace.get("WRITTEN", ()):
            succeeds(run, [*arguments, *SHORT])


def recipes_in(given):
    """What a command takes for recipes: one, several, or none."""
    return [given["recipe"]] if given.get("recipe") else list(given.get("recipes", ()))


def succeeds(command, arguments):
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output


def recipes(example):
    """A YAML block parses; one that begins with its file's name is a recipe, and is written for later commands."""
    assert YAML(typ="safe").load(example.parsed) is not None
    if named := re.match(r"# (\w+\.yaml)\n", example.parsed):
        Path(named[1]).write_text(example.parsed)
        example.namespace.setdefault("WRITTEN", set()).add(named[1])
        load_recipe(named[1])


BLOCKS = Sybil([PythonCodeBlockParser(), CodeBlockParser("sh", commands), CodeBlockParser("yaml", recipes)])
READ_ONLY = Sybil([CodeBlockParser("sh", commands), CodeBlockParser("yaml", recipes)])


@pytest.fixture
def folder(tmp_path, monkeypatch, make_tiny_imagenet, make_rated_triplets):
    """A working directory with the data that the pages speak of, in small."""
    make_tiny_imagenet(tmp_path / "data", classes=4, train=12)
    make_rated_triplets(tmp_path / "similarity-triplets")
    quickstart = (ROOT / "recipes" / "quickstart.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(quickstart)
    (tmp_path / "theirs.yaml").write_text(quickstart.replace("gap: 0.5", "gap: 0.1"))
    for number in range(8):
        file = tmp_path / "my_images" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 30 * number, np.uint8)).save(file)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    return tmp_path


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """A run of the quickstart, cut short."""
    folder = tmp_path_factory.mktemp("docs") / "run"
    succeeds(
        run, ["quickstart", "--output", str(folder), "--set", f"data.cache={folder.parent / 'cache'}", *SHORT]
    )
    return folder


@pytest.fixture
def module(monkeypatch):
    """The module that a page's code makes up, as its recipes name it."""
    made = types.ModuleType("my_parts")
    monkeypatch.setitem(sys.modules, "my_parts", made)
    return made


# PML formats the loss with %, which newer torch warns of.
@pytest.mark.filterwarnings("ignore:Converting a tensor:UserWarning")
@pytest.mark.parametrize("page", SHOWN, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_of_page_run(page, folder, module, request):
    if "dr_plugin.load(" in page.read_text() and page.name != "README.md":
        shutil.copytree(request.getfixturevalue("finished_run"), folder / "runs" / "quickstart")
    torch.manual_seed(0)
    # The README's Python is run by test_package.py, at a size that a CPU can train.
    document = (READ_ONLY if page.name == "README.md" else BLOCKS).parse(page)
    document.namespace = vars(module)
    if page.parent == SHARED.parent and page != SHARED:
        shared = BLOCKS.parse(SHARED)
        shared.namespace = document.namespace
        for example in shared.examples():
            example.evaluate()
    for example in document.examples():
        example.evaluate()


def test_every_page_is_in_a_table_of_contents():
    listed = {(DOCS / "index.md").resolve()}
    for page in PAGES:
        for block in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(), flags=re.DOTALL):
            names = [line for line in block.splitlines() if line and not line.startswith(":")]
            listed |= {(page.parent / f"{name}.md").resolve() for name in names}
    assert {page.resolve() for page in PAGES} == listed


def test_tests_that_pages_name_are_there():
    known = {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)", file.read_text())
    }
    named = {name for page in PAGES for name in re.findall(r"`(test_\w+)`", page.read_text())}
    assert len(named) > 20
    assert named - known == set()


@pytest.mark.parametrize(
    "family", ["trunks", "samplers", "miners", "losses", "relevance", "reservoirs", "datasets", "metrics"]
)
def test_every_public_name_is_used_in_code(family):
    """Not only named or imported: each has an example that runs."""
    code = [
        block for page in PAGES for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    ]
    used = {name for block in code for name in names_used(block)}
    names = set(importlib.import_module(f"dr_plugin.{family}").__all__)
    if family == "relevance":
        names |= set(importlib.import_module("dr_plugin.relevance.features").__all__)
    # Errors are raised, not used.
    assert {name for name in names - used if not name.endswith("Error")} == set()


def names_used(code):
    """The names that Python code reads, those of attributes too; imports, comments and texts apart."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield node.id if isinstance(node, ast.Name) else node.attr


def test_name_that_is_only_imported_is_not_used():
    code = "from a import B, C, D  # D\nimport E\nF = C('D')\nE.G.H = 1\n"
    assert set(names_used(code)) == {"C", "E", "G"}


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(DOCS / "_ext")
    return importlib.import_module("recipe_tables")


def sections(model: type[BaseModel]):
    """The model, and every section that its schema refers to."""
    schema = model.model_json_schema()
    return [schema, *(found for name, found in schema["$defs"].items() if name != "Slot")]


@pytest.mark.parametrize("model", [Recipe, TableRecipe], ids=lambda model: model.__name__)
def test_recipe_reference_describes_every_key(model, tables):
    text = tables.reference(model, "recipe")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) == sum(len(section["properties"]) for section in sections(model))
    cells = [re.split(r"(?<!\\)\|", row)[1:-1] for row in rows]
    assert all(len(row) == 4 and all(cell.strip() for cell in row) for row in cells)
    for anchor in re.findall(r"\]\(#([\w-]+)\)", text):
        assert f"({anchor})=" in text


def test_recipe_reference_shows_defaults_and_ranges_as_yaml_has_them(tables):
    text = tables.reference(Recipe, "recipe")
    assert "| `selection` | whole number ≥ 0 | `10` |" in text
    assert "| `channels_last` | `true` or `false` | `true` |" in text
    assert "| `label_smoothing` | number ≥ 0, < 1 | `0.0` |" in text
    assert "| `scheduler` | a slot or `null` | `null` |" in text


def test_slots_name_every_kind_and_link_ours(tables):
    text = tables.slots(depth=2)
    assert re.findall(r"^## (\w+)$", text, re.MULTILINE) == list(KINDS)
    assert "<dr_plugin.miners.UniformTripletMiner>" in text
    assert "`TripletMarginMiner`" in text
