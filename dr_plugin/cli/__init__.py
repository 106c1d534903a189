"""The command line: ``dr-run RECIPE`` and the group ``dr``. The only room that prints."""

import click

from dr_plugin import __version__

from .comparing import compare
from .evaluating import evaluate
from .exporting import export
from .recipes import recipes
from .reporters import PlainReporter, TerminalReporter
from .running import run
from .searching import search

__all__ = ["PlainReporter", "TerminalReporter", "main", "run"]


@click.group()
@click.version_option(__version__, package_name="dr-plugin")
def main() -> None:
    """Deep Ranking on pytorch-metric-learning."""


for command in (run, recipes, compare, evaluate, search, export):
    main.add_command(command)
