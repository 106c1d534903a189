"""``dr compare``: the same trunk, data, images and schedule under different samplers, miners and losses."""

from pathlib import Path

import click

from .errors import guarded
from .running import free_folder, work


@click.command()
@click.argument("recipes", nargs=-1, metavar="RECIPE...")
@click.option(
    "--seeds", type=click.IntRange(min=1), metavar="N", help="Run each variant with the seeds 0 to N-1."
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a key of every recipe, e.g. data.classes=20.",
)
@click.option(
    "--device",
    "devices",
    multiple=True,
    default=("auto",),
    show_default=True,
    help="auto, cpu, cuda or cuda:N; several times for as many runs at once, also of one device.",
)
@click.option(
    "--output", type=click.Path(path_type=Path), help="The comparison's folder; runs/NAME where not given."
)
@click.option(
    "--resume", type=click.Path(path_type=Path), metavar="DIR", help="Go on with an interrupted comparison."
)
@click.option("--check", is_flag=True, help="Only check the recipes; touch no data.")
def compare(
    recipes: tuple[str, ...],
    seeds: int | None,
    overrides: tuple[str, ...],
    devices: tuple[str, ...],
    output: Path | None,
    resume: Path | None,
    check: bool,
) -> None:
    """Train variants that differ in sampler, miner and loss alone, each with several seeds, and tabulate them.

    RECIPE... are recipes of one experiment each, or one that lists its variants under `compare`: YAML files, or
    names of recipes that came with the package.
    """
    guarded(lambda: _compare(recipes, seeds, overrides, list(devices), output, resume, check))


def _compare(
    recipes: tuple[str, ...],
    seeds: int | None,
    overrides: tuple[str, ...],
    devices: list[str],
    output: Path | None,
    resume: Path | None,
    check: bool,
) -> None:
    from dr_plugin.experiments.compare_plan import comparison_of, join
    from dr_plugin.experiments.recipe import RecipeError, load_recipe

    if resume is not None:
        if recipes or overrides or seeds is not None or output is not None:
            raise RecipeError(
                "--resume: goes on with the comparison's own recipe and folder; expected no RECIPE, --seeds, --set "
                "and --output"
            )
        if not (resume / "recipe.yaml").is_file():
            raise RecipeError(
                f"--resume: {resume} holds no recipe.yaml, expected the folder of an earlier comparison"
            )
        recipe = load_recipe(resume / "recipe.yaml")
        comparison_of(recipe)
    elif recipes:
        chosen = None if seeds is None else range(seeds)
        recipe = join([(source, load_recipe(source, overrides)) for source in recipes], chosen)
    else:
        raise RecipeError(
            "RECIPE: got nothing, expected recipes' paths or shipped recipes' names (see: dr recipes)"
        )
    if check:
        click.echo(f"{recipe.name}: the comparison is good")
        return
    folder = resume or output or free_folder(recipe.name)
    work(recipe, folder, devices, resume=resume is not None, again="dr compare")
