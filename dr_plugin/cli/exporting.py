"""``dr export``: a trained trunk as one file."""

from pathlib import Path

import click

from .errors import guarded


@click.command()
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option(
    "--to",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="model.pt2 (torch.export), model.onnx (ONNX; needs dr-plugin[onnx]) or model.pt (state dicts); "
    "state_dict is state_dict.pt.",
)
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    help="Of a .pt2, which is bound to it: auto, cpu, cuda or cuda:N. The other files are for every device.",
)
@click.option("--force", is_flag=True, help="Replace a file that exists.")
def export(run: Path, to: Path, device: str, force: bool) -> None:
    """Write the trunk of the finished run in the folder RUN to a file, with the images' normalisation inside.

    The file takes uint8 images (B, 3, S, S) of the run's image size, computes in float32 and gives embeddings (B, D);
    state dicts do so in a NormalizedTrunk. It is read again and compared with the run before it takes its place.
    """
    guarded(lambda: _export(run, to, device, force))


def _export(run: Path, to: Path, device: str, force: bool) -> None:
    from dr_plugin.evaluation.export import export_run

    done = export_run(run, to, device=device, force=force)
    size = done.image_size
    click.echo(f"{done.path}: {done.what}, {done.path.stat().st_size / 2**20:.1f} MiB")
    click.echo(
        f"takes uint8 images (B, 3, {size}, {size}), not normalised; gives (B, {done.embedding_size}) float32"
    )
    click.echo(f"largest difference from the run's embeddings: {done.difference:.2g}")
    for note in done.notes:
        click.echo(f"note: {note}")
