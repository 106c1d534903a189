"""Random command lines: each works or ends in lines and status 1 or 2; no traceback, and nothing is written unasked."""

import random
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from dr_plugin.cli import main

from .evaluation.run_cases import finished

LINES = 60  # of each command
WORDS = [
    *[
        "",
        "-",
        "--",
        "---",
        "nowhere",
        "..",
        ".",
        "/",
        "/dev/null",
        "~",
        "mine.yaml",
        "folder",
        "broken.yaml",
    ],
    *[
        "quickstart",
        "quickstart.yaml",
        "Quickstart",
        "tiny_fig6_cpu",
        "compare_builtin",
        "table1",
        "quickstart ",
    ],
    *[
        "seed=1",
        "seed=",
        "=1",
        "seed",
        "a=b=c",
        "stages.0.epochs=-1",
        "stages.9.x=1",
        "data={",
        "x" * 300,
        "x=" + "[" * 99,
    ],
    *[
        "0",
        "-1",
        "1",
        "3.5",
        "1e400",
        "nan",
        "9" * 400,
        "\u0663",
        "r\u00e9sum\u00e9",
        "a\nb",
        "\x1b[31m",
        "[red]x[/red]",
    ],
    *[
        "cpu",
        "cuda:99",
        "meta",
        "auto",
        "tpu",
        "none",
        "imagenet",
        "HOG",
        "hog",
        "json:dumps",
        "json:",
        ":",
        "no_such:thing",
    ],
    *[
        "Digits:x",
        "TinyImageNet:nowhere",
        "ClassFolders:folder",
        "SimilarityTriplets:folder",
        "mine.csv",
        "--help",
        "--version",
    ],
    *["done", "m.pt2", "m.pt", "state_dict", "done/checkpoint/best.pt", "99999"],
]
WRITERS = {("recipes", "copy"), ("export",), ("search",), ("evaluate",)}
LIKELY = {
    ("export",): ["done", "--to=m.pt", "--to=state_dict", "--force"],
    ("search",): ["done"],
    ("evaluate",): ["done"],
}


@pytest.fixture
def somewhere(tmp_path, monkeypatch):
    """A working directory with a few things to stumble over, and no run that would take long."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # of matplotlib's, too
    tmp_path = tmp_path / "here"
    (tmp_path / "folder").mkdir(parents=True)
    (tmp_path / "folder" / "recipe.yaml").write_text("seed: [\n")
    (tmp_path / "broken.yaml").write_bytes(b"\xff\xfe\x00 a: {")
    (tmp_path / "mine.yaml").write_text("seed: 0\nstages: 3\n")
    (tmp_path / "mine.csv").write_text("query,positive\na,b\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dr_plugin.cli.running.work", lambda *_, **__: None)
    monkeypatch.setattr("dr_plugin.cli.comparing.work", lambda *_, **__: None)
    monkeypatch.setattr("dr_plugin.cli.running.launch", lambda *_, **__: None)
    finished(tmp_path / "done")
    return tmp_path


def command_lines(path, command, draw):
    """Random lines of a command: its own options and others, with words that suit them or do not."""
    options = [name for option in command.params if isinstance(option, click.Option) for name in option.opts]
    choices = [str(one) for option in command.params for one in getattr(option.type, "choices", ())]
    for _ in range(LINES):
        line = []
        for _ in range(draw.randrange(6)):
            if draw.random() < 0.5:
                line.append(draw.choice([*options, draw.choice(WORDS)]))
            line.append(draw.choice([draw.choice(WORDS), *choices, *LIKELY.get(path, ())]))
        yield [*path, *line]


def commands(group, path=()):
    for name, command in group.commands.items():
        yield from (
            commands(command, (*path, name))
            if isinstance(command, click.Group)
            else [((*path, name), command)]
        )
        if isinstance(command, click.Group):
            yield (*path, name), command


COMMANDS = dict(commands(main))


def tree(folder):
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_random_command_line_works_or_ends_in_lines(path, somewhere):
    draw, before = random.Random(" ".join(path)), tree(somewhere)
    statuses = set()
    for line in command_lines(path, COMMANDS[path], draw):
        result = CliRunner().invoke(main, line)
        statuses.add(result.exit_code)
        assert result.exit_code in (0, 1, 2), (line, result.exception)
        assert result.exception is None or isinstance(result.exception, SystemExit), (line, result.exception)
        assert "Traceback" not in result.output, line
        if result.exit_code:
            assert result.stderr.strip(), line
            assert len(result.stderr) < 5000, line
        written = {name for name in tree(somewhere) if name not in before}
        assert not written or path in WRITERS, (line, written)
        for name in written:
            Path(name).unlink()
    assert 2 in statuses


@pytest.mark.parametrize("number", ["0", "-1", "99999", "9" * 400, "two"])
def test_senseless_number_of_processes_is_refused(number, somewhere):
    result = CliRunner().invoke(main, ["run", "quickstart", f"--nproc={number}"])
    assert result.exit_code == 2
    assert "Invalid value for '--nproc'" in result.stderr


def test_all_commands_are_tried():
    names = {" ".join(path) for path in COMMANDS}
    assert names >= {
        "run",
        "compare",
        "evaluate",
        "search",
        "export",
        "recipes",
        "recipes list",
        "recipes show",
        "recipes copy",
    }
