"""``dr evaluate``: any model on any data set."""

import os
import sys
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from .errors import guarded
from .reporters import console, reporter

FILE = click.Path(path_type=Path)


@click.command()
@click.argument("model")
@click.option(
    "--on", "dataset", required=True, metavar="DATASET", help="Name:root, a folder or a triplet file."
)
@click.option("-k", "--k", default=30, show_default=True, help="Neighbours.")
@click.option("--image-size", type=int, metavar="S", help="Side of the images; a run has its own.")
@click.option(
    "--normalize",
    type=click.Choice(["imagenet", "none"]),
    default="imagenet",
    show_default=True,
    help="What a callable expects: ImageNet's mean and deviation taken off, or images in 0..1.",
)
@click.option("--images", type=FILE, metavar="FOLDER", help="Where a file of triplets has its images.")
@click.option("--skip-missing", is_flag=True, help="Leave out triplets without their images, and count them.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--seed", default=0, show_default=True, help="Of the bootstrap.")
@click.option(
    "--cache", metavar="DIR", help="Where packed images are kept; the user's cache where not given."
)
@click.option("--output", type=FILE, metavar="FILE", help="Write the figures as JSON, too.")
def evaluate(model: str, dataset: str, **options: Any) -> None:
    """Measure MODEL on a data set: every metric that the data allow.

    MODEL is a run's folder, the name of a hand-crafted feature such as HOG, or package.module:callable, which maps a
    batch of images (B, 3, S, S) to embeddings (B, D).

    DATASET is TinyImageNet:root, ClassFolders:root, Digits or SimilarityTriplets:root; or a folder, or a file of
    triplets (.csv, .txt), which is looked at.
    """
    guarded(lambda: _evaluate(model, dataset, **options))


def _evaluate(
    spec: str,
    dataset: str,
    *,
    k: int,
    image_size: int | None,
    normalize: str,
    images: Path | None,
    skip_missing: bool,
    device: str,
    seed: int,
    cache: str | None,
    output: Path | None,
) -> None:
    from dr_plugin.atomic import write_json
    from dr_plugin.checks import check_whole
    from dr_plugin.evaluation.data import open_data
    from dr_plugin.evaluation.evaluate import evaluate as measure
    from dr_plugin.evaluation.evaluate import summary
    from dr_plugin.evaluation.model import open_model

    check_whole("--k", k, minimum=1)
    sys.path.insert(0, os.getcwd())  # for a callable of the user's, as python -m would find it
    model = open_model(spec, device=device, image_size=image_size, normalize=normalize)
    with reporter() as shown:
        data = open_data(
            dataset,
            image_size=model.image_size,
            cache=cache,
            images=images,
            skip_missing=skip_missing,
            progress=shown.update,
        )
        figures = measure(model, data, k=k, seed=seed, progress=shown.update)
    table = Table(title=f"{escape(model.name)} on {data.name}")
    table.add_column("metric", overflow="fold")
    table.add_column("value", justify="right")
    for name, value in summary(figures):
        table.add_row(escape(name), value)
    console.print(table)
    if "note" in figures:
        click.echo(f"note: {figures['note']}")
    if output is not None:
        write_json(output, figures)
        click.echo(f"figures: {output}")
