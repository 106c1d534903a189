"""``dr search``: the images most like a user's own."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.markup import escape
from rich.table import Table

from .errors import guarded
from .reporters import console, reporter

if TYPE_CHECKING:  # else imported where it is used: it brings PyTorch, for which --help need not wait
    from dr_plugin.evaluation.search import Neighbor


@click.command()
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option(
    "--query",
    "queries",
    multiple=True,
    required=True,
    metavar="IMAGE",
    help="An image file, or the name of an image of the gallery; several times for several queries.",
)
@click.option(
    "--gallery",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Search all images below this folder; where not given, the run's training images or, under "
    "evaluation.gallery: val, those of its unseen classes.",
)
@click.option("-k", "--k", default=10, show_default=True, help="Images for each query.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="PNG",
    help="The picture; RUN/search/QUERY.png where not given.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
def search(
    run: Path, queries: tuple[str, ...], gallery: Path | None, k: int, output: Path | None, device: str
) -> None:
    """Show the images most like yours, by the model of the finished run in the folder RUN.

    The gallery is embedded once; its index is kept in RUN/search and made anew when the gallery changes.
    """
    guarded(lambda: _search(run, queries, gallery, k, output, device))


def _search(
    run: Path, queries: tuple[str, ...], gallery: Path | None, k: int, output: Path | None, device: str
) -> None:
    from dr_plugin.evaluation.search import search_run

    with reporter() as shown:
        result = search_run(
            run, queries, gallery=gallery, k=k, output=output, device=device, progress=shown.update
        )
    for note in result.notes:
        click.echo(note)
    for query, neighbors in zip(result.queries, result.neighbors, strict=True):
        _print_neighbors(f"{query}: the nearest of {result.images:,} images", neighbors)
    click.echo(f"picture: {result.picture}")


def _print_neighbors(title: str, neighbors: "list[Neighbor]") -> None:
    classes = neighbors[0].class_name is not None
    click.echo(title)
    table = Table()
    table.add_column("", justify="right")
    table.add_column("distance", justify="right")
    if classes:
        table.add_column("class")
    table.add_column("image", overflow="fold")
    for rank, one in enumerate(neighbors, start=1):
        names = [one.class_name or "", one.name] if classes else [one.name]
        table.add_row(str(rank), f"{one.distance:.4f}", *map(escape, names))
    console.print(table)
