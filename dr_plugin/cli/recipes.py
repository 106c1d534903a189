"""``dr recipes``: the recipes that came with the package."""

from pathlib import Path

import click

from .errors import guarded


@click.group(invoke_without_command=True)
@click.pass_context
def recipes(context: click.Context) -> None:
    """The recipes that came with the package."""
    if context.invoked_subcommand is None:
        context.invoke(list_recipes)


@recipes.command(name="list")
def list_recipes() -> None:
    """Name each recipe and what it is for."""
    from dr_plugin.experiments import shipped

    for name in shipped.names():
        summary = shipped.path(name).read_text().splitlines()[0].removeprefix("# ")
        click.echo(f"{name:22} {summary}")


@recipes.command()
@click.argument("name")
def show(name: str) -> None:
    """Print a recipe."""
    from dr_plugin.experiments import shipped

    guarded(lambda: click.echo(shipped.path(name).read_text(), nl=False))


@recipes.command()
@click.argument("name")
@click.argument("destination", required=False, type=click.Path(path_type=Path))
def copy(name: str, destination: Path | None) -> None:
    """Copy a recipe to DESTINATION (here, where not given), to make it yours."""
    from dr_plugin.experiments import shipped

    guarded(lambda: click.echo(f"copied to {shipped.copy(name, destination or Path())}"))
