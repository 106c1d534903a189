"""Where LRML, a contrastive and a triplet loss leave the negatives: the toy problem of the losses page.

    python docs/lrml_toy.py docs/images/lrml-toy.png

The embeddings are the parameters, and all losses get the same steps and learning rate. First row: 32 queries on the
unit sphere, each with a positive and five negatives of its own, which start at distances drawn between 0.3 and 0.7.
The queries stand still, so that where the others end is known in closed form. Second row: ordinary batches. Each of
12 classes has 8 images, of which a batch holds 4; every image is a query and the others' negative, and each loss
takes what it takes without a miner. Shown are, of all images, the distances to the farthest image of its class (the
positive) and to the nearest image of each of the five nearest classes (the negatives).
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import matplotlib
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pytorch_metric_learning.losses import ContrastiveLoss, TripletMarginLoss
from pytorch_metric_learning.reducers import MeanReducer
from torch import Tensor
from torch.nn.functional import normalize

from dr_plugin.losses import LRMLLoss

matplotlib.use("agg")
from matplotlib import pyplot as plt

QUERIES, NEGATIVES, SIZE = 32, 5, 16
CLASSES, IMAGES, IN_BATCH = 12, 8, 4
Loss = Callable[..., Tensor]
Courses = dict[str, Tensor]  # of each loss (steps + 1, queries, 1 + NEGATIVES): the positive, then by rank
COLOURS = ["#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00"]  # of Okabe and Ito, for the ranks


def losses(triplet_margin: float, reducer: MeanReducer | None = None) -> dict[str, Loss]:
    """What is compared."""
    return {
        "ContrastiveLoss (PML)": ContrastiveLoss(neg_margin=1.0, reducer=reducer),
        "TripletMarginLoss (PML)": TripletMarginLoss(triplet_margin, reducer=reducer),
        "LRMLLoss": LRMLLoss(NEGATIVES, margin=0.8, step=0.1, reducer=reducer),
        "LRMLLoss, two-sided": LRMLLoss(NEGATIVES, margin=0.8, step=0.1, two_sided=True, reducer=reducer),
    }


# Its margin of 1 reaches beyond where the first row's negatives start; unit-norm embeddings usually get 0.2.
OWN, SHARED = losses(1.0, MeanReducer()), losses(0.2)


def start(seed: int = 0) -> Tensor:
    """Query, positive and negatives of each tuple: (QUERIES, 2 + NEGATIVES, SIZE), of unit norm."""
    generator = torch.Generator().manual_seed(seed)
    query = normalize(torch.randn(QUERIES, 1, SIZE, generator=generator), dim=2)
    away = torch.randn(QUERIES, 1 + NEGATIVES, SIZE, generator=generator)
    away = normalize(away - (away * query).sum(2, keepdim=True) * query, dim=2)
    distance = 0.3 + 0.4 * torch.rand(QUERIES, 1 + NEGATIVES, 1, generator=generator)
    cosine = 1 - distance**2 / 2
    return torch.cat([query, cosine * query + (1 - cosine**2).sqrt() * away], dim=1)


def triplets() -> tuple[Tensor, Tensor, Tensor]:
    """Each query's, as indices into the flattened embeddings."""
    first = torch.arange(QUERIES).repeat_interleave(NEGATIVES) * (2 + NEGATIVES)
    return first, first + 1, first + 2 + torch.arange(NEGATIVES).repeat(QUERIES)


def train(loss_func: Loss, *, steps: int = 200, rate: float = 2.0, still: bool = True) -> Tensor:
    """Distances of the query to its positive and its negatives by rank, before each step and at the end.

    Args:
        still: Whether the queries stand still.
    Shape:
        -> (steps + 1, QUERIES, 1 + NEGATIVES): the positive, then the negatives, the nearest first.
    """
    embeddings = start().requires_grad_()

    def loss() -> Tensor:
        if still:  # their gradient is left out
            moving = torch.cat([embeddings[:, :1].detach(), embeddings[:, 1:]], dim=1)
        return loss_func((moving if still else embeddings).flatten(0, 1), indices_tuple=triplets())

    return _trained(embeddings, loss, _to_own, steps, rate)


def shared_start(seed: int = 0, near: float = 1.0) -> Tensor:
    """Images of classes, the nearer each other the larger `near`, anywhere on the sphere with 0.

    Shape:
        -> (CLASSES, IMAGES, SIZE), of unit norm.
    """
    generator = torch.Generator().manual_seed(seed)
    region, centres, images = (
        normalize(torch.randn(*shape, SIZE, generator=generator), dim=2)
        for shape in ((1, 1), (CLASSES, 1), (CLASSES, IMAGES))
    )
    return normalize(normalize(near * region + centres, dim=2) + 0.3 * images, dim=2)


def train_shared(
    loss_func: Loss, *, steps: int = 300, rate: float = 1.5, seed: int = 0, near: float = 1.0
) -> Tensor:
    """Distances of each image to its class and the nearest others, before each step and at the end.

    Shape:
        -> (steps + 1, CLASSES * IMAGES, 1 + NEGATIVES): farthest of its class, nearest of the NEGATIVES nearest ones.
    """
    embeddings = shared_start(seed, near).requires_grad_()
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(CLASSES).repeat_interleave(IN_BATCH)

    def loss() -> Tensor:
        drawn = torch.rand(CLASSES, IMAGES, generator=generator).argsort(1)[:, :IN_BATCH]
        return loss_func(embeddings[torch.arange(CLASSES)[:, None], drawn].flatten(0, 1), labels)

    return _trained(embeddings, loss, _to_classes, steps, rate)


def _trained(
    embeddings: Tensor,
    loss: Callable[[], Tensor],
    distances: Callable[[Tensor], Tensor],
    steps: int,
    rate: float,
) -> Tensor:
    optimizer = torch.optim.SGD([embeddings], lr=rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    course = [distances(embeddings.detach())]
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        schedule.step()
        course.append(distances(embeddings.detach()))
    return torch.stack(course)


def _to_own(embeddings: Tensor) -> Tensor:
    unit = normalize(embeddings, dim=2)
    distances = (unit[:, :1] - unit[:, 1:]).norm(dim=2)
    return torch.cat([distances[:, :1], distances[:, 1:].sort(dim=1).values], dim=1)


def _to_classes(embeddings: Tensor) -> Tensor:
    unit = normalize(embeddings, dim=2).flatten(0, 1)
    distances = torch.cdist(unit, unit).unflatten(1, (CLASSES, IMAGES))
    own = torch.eye(CLASSES, dtype=torch.bool).repeat_interleave(IMAGES, dim=0)
    nearest = distances.amin(2).masked_fill(own, torch.inf).sort(dim=1).values
    return torch.cat([distances.amax(2)[own].unsqueeze(1), nearest[:, :NEGATIVES]], dim=1)


def ends(rows: dict[str, Courses]) -> dict[str, list[float]]:
    """The mean distances at the end, by row and loss."""
    return {
        f"{row}: {name}": [round(value, 2) for value in course[-1].mean(0).tolist()]
        for row, courses in rows.items()
        for name, course in courses.items()
    }


def draw(rows: dict[str, Courses], path: Path) -> None:
    """One panel for each loss and row: mean over the queries, 10th to 90th percentile. `ends` is kept in the file."""
    figure, panels = plt.subplots(len(rows), 4, figsize=(10, 5.6), sharey=True, layout="constrained")
    for line, (row, courses) in zip(panels, rows.items(), strict=True):
        for panel, (name, distances) in zip(line, courses.items(), strict=True):
            low, high = distances.quantile(torch.tensor([0.1, 0.9]), dim=1)
            for column in range(1 + NEGATIVES):
                colour = COLOURS[column - 1] if column else "black"
                label = f"negative {column}" if column else "positive"
                mean = distances[:, :, column].mean(1)
                panel.plot(mean, color=colour, label=label, ls="-" if column else "--")
                steps = range(len(distances))
                panel.fill_between(steps, low[:, column], high[:, column], color=colour, alpha=0.12, lw=0)
            panel.set_title(name, fontsize=10)
            panel.set(ylim=(0, 1.5))
            panel.grid(alpha=0.3)
        line[0].set_ylabel(f"{row}\ndistance to the query")
    for panel in panels[-1]:
        panel.set_xlabel("step")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right center", frameon=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)
    text = PngInfo()
    text.add_text("ends", json.dumps(ends(rows)))
    with Image.open(path) as picture:  # 64 colours: a third of the size
        picture.convert("RGB").quantize(64).save(path, optimize=True, pnginfo=text)


def courses() -> dict[str, Courses]:
    """The rows of the picture."""
    return {
        "negatives of its own": {name: train(loss_func) for name, loss_func in OWN.items()},
        "ordinary batches": {name: train_shared(loss_func) for name, loss_func in SHARED.items()},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("picture", type=Path)
    draw(courses(), parser.parse_args().picture)
