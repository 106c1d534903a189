"""Mutated recipes: each is a recipe still, or refused in well-formed lines; nothing else ever comes out."""

import copy
import io
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from dr_plugin.experiments import recipe_file, shipped
from dr_plugin.experiments.recipe import Recipe, RecipeError, load_recipe

MUTANTS = 44  # of each recipe, by each of the kinds of mutation below
JUNK: list[Any] = [
    *[None, True, False, 0, -1, 1, 3, 7, 0.5, -0.5, 1e-300, 1e300, 10**9, 10**30, 10**400],
    *[
        float("inf"),
        float("nan"),
        "",
        "no",
        "1e-3",
        "512",
        "r\u00e9sum\u00e9",
        "a: b",
        "a\nb",
        "\u2028",
        "x" * 500,
    ],
    *[
        "../..",
        "/dev/null",
        "[1, 2]",
        "{}",
        [],
        [[]],
        [1, "a", None],
        {},
        {"a": {"b": {"c": [1]}}},
        [{"type": 3}],
    ],
    *({"type": type_} for type_ in (None, [], "x", "..", "a.b c", "no_such.Thing", "asleep", "LBFGS")),
    *(
        {"type": type_}
        for type_ in ("os.system", "builtins.eval", "canary.boom", "canary.missing", "hangs_up.X")
    ),
    {"type": "subprocess.Popen", "args": ["true"]},
    {"type": "shutil.rmtree", "path": "x"},
    {"type": "canary.Boom", "a": 1},
    {"type": "torch.nn.Linear", "in_features": 10**9, "out_features": 10**9},
    {"type": "TripletMarginLoss", "distance": {"type": "LpDistance", "powr": 2}},
    {"type": "MultipleLosses", "losses": [{"type": "ArcFaceLoss"}, 3]},
    {"type": "CrossBatchMemory", "loss": {"type": "ContrastiveLoss"}, "memory_size": -1},
    {"type": "MPerClassSampler", "m": 10**9},
    {"type": "FixedSetOfTriplets", "num_triplets": 10**9},
    {"type": "DeepRankingTrunk", "embedding_size": 10**12},
    {"type": "CosineAnnealingLR", "T_max": 0},
    {"type": "SGD", "lr": "big"},
]


def _typo(text: str, draw: random.Random) -> str:
    i = draw.randrange(len(text) + 1)
    return draw.choice(
        [text[:i] + text[i + 1 :], text[:i] + draw.choice("abz_.-:#'\"[{&*!%@`\t \u00e9") + text[i:]]
    )


def _mutate_line(text: str, draw: random.Random) -> bytes:
    """A typo, another indentation, or a line that is missing, doubled, moved, or said otherwise."""
    lines = text.splitlines()
    i, j = draw.randrange(len(lines)), draw.randrange(len(lines))
    line = lines[i]
    key = line.partition(":")[0]
    lines[i : i + 1] = draw.choice(
        [
            [_typo(line, draw)],
            [_typo(key, draw) + line[len(key) :]],
            [draw.choice([" ", "   ", "\t", "- "]) + line],
            [line[2:]],
            [],
            [line, line],
            [lines[j]],
            [f"{key}: {draw.choice(JUNK)}"],
            [f"{key}: {draw.choice(['&a [*a]', '!!python/name:os.system', '|', '[', '{', '? x', '@'])}"],
            [line, line.replace(key.strip() or "x", "<<")],
        ]
    )
    return "\n".join(lines).encode()


def _mutate_bytes(text: str, draw: random.Random) -> bytes:
    """Bytes changed, cut off, or random altogether."""
    content = bytearray(text.encode())
    for _ in range(draw.randrange(1, 6)):
        content[draw.randrange(len(content))] = draw.randrange(256)
    i, j = draw.randrange(len(content)), draw.randrange(len(content))
    return bytes(
        draw.choice(
            [content, content[:i], content[i:], content[:i] + content[j:], draw.randbytes(200), content * 40]
        )
    )


def _mutate_value(text: str, draw: random.Random) -> bytes:
    """Values and keys changed in a file that stays good YAML."""
    data = recipe_file.parse(text, "mutant.yaml").data
    for _ in range(draw.choice([1, 1, 1, 2])):
        holder, key = draw.choice(_places(data))
        action = draw.randrange(5)
        if action == 0:
            del holder[key]
        elif action == 1 and isinstance(holder, dict):
            holder[_typo(key, draw)] = holder.pop(key)
        elif action == 2:
            other, other_key = draw.choice(_places(data))
            holder[key] = copy.deepcopy(other[other_key])
        else:
            holder[key] = copy.deepcopy(draw.choice(JUNK))
    stream = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.representer.ignore_aliases = lambda _: True  # type: ignore[method-assign]
    yaml.dump(data, stream)
    return stream.getvalue().encode()


def _places(data: Any) -> list[tuple[Any, Any]]:
    items = list(data.items() if isinstance(data, dict) else enumerate(data))
    deeper = [place for _, value in items if isinstance(value, dict | list) for place in _places(value)]
    return [(data, key) for key, _ in items] + deeper


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was called or imported that no recipe may call or import."""
    calls: list[str] = []

    def record(name: str) -> Callable[..., None]:
        return lambda *_, **__: calls.append(name)

    monkeypatch.setattr(os, "system", record("os.system"))
    monkeypatch.setattr(shutil, "rmtree", record("shutil.rmtree"))
    monkeypatch.setattr(subprocess.Popen, "__init__", record("subprocess.Popen"))
    monkeypatch.setattr(sys, "canary_calls", calls, raising=False)
    (tmp_path / "canary.py").write_text(
        "import sys\n"
        "def boom(*a, **k): sys.canary_calls.append('canary.boom')\n"
        "class Boom:\n    def __init__(self, *a, **k): sys.canary_calls.append('canary.Boom')\n"
    )
    (tmp_path / "asleep.py").write_text("import sys; sys.canary_calls.append('imported asleep')\n")
    (tmp_path / "hangs_up.py").write_text("raise SystemExit('a script')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return calls


@pytest.mark.parametrize("mutate", [_mutate_line, _mutate_bytes, _mutate_value])
@pytest.mark.parametrize("name", ["quickstart", "tiny_uniform", "tiny_uniform_cpu", "tiny_uniform_paper"])
def test_mutated_recipe_loads_or_is_refused_in_lines(
    name: str, mutate: Callable[[str, random.Random], bytes], called: list[str]
) -> None:
    text = shipped.path(name).read_text()
    draw = random.Random(f"{name} {mutate.__name__}")
    refused = sum(_is_refused(mutate(text, draw)) for _ in range(MUTANTS))
    assert refused > MUTANTS // 3
    assert called == []


@pytest.mark.parametrize("name", ["quickstart", "tiny_uniform"])
def test_mutated_set_loads_or_is_refused_in_lines(name: str, called: list[str]) -> None:
    draw = random.Random(name)
    keys = [
        "seed",
        "data.augment.pixel_shift",
        "stages.ranking.loss",
        "stages[0].epochs",
        "trunk.convnet",
        "x",
    ]
    lines = [
        _refusal(name, [_typo(f"{draw.choice(keys)}={draw.choice(JUNK)}", draw)]) for _ in range(2 * MUTANTS)
    ]
    assert sum(map(bool, lines)) > MUTANTS
    assert all(line.isprintable() for found in lines for line in found)
    assert all(any(line.startswith("--set ") for line in found) for found in lines if found)
    assert called == []


def _is_refused(content: bytes) -> bool:
    Path("mutant.yaml").write_bytes(content)
    lines = _refusal("mutant.yaml")
    for line in lines:
        found = re.fullmatch(r"mutant\.yaml:(\d+): .+?: (.+)", line)
        assert found, line
        assert line.isprintable(), line
        assert 1 <= int(found[1]) <= len(content.splitlines()) + 1, line
        assert "expected" in line or "refuses its arguments: " in line, line
    return bool(lines)


def _refusal(source: str, overrides: Sequence[str] = ()) -> list[str]:
    """The lines of the error; none where the recipe loads."""
    try:
        assert isinstance(load_recipe(source, overrides), Recipe)
    except RecipeError as error:
        return error.lines or ["an error without a line"]
    return []
