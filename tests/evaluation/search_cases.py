"""Galleries of coloured squares, and a model whose embedding is the mean colour: the right answer is known."""

import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

COLOURS = {"red": (250, 0, 0), "orange": (250, 120, 0), "green": (0, 250, 0), "blue": (0, 0, 250)}


class MeanColour:
    """Embeds an image as its mean colour in 0..1, and takes some seconds for it."""

    recipe = None
    distance = "euclidean"

    def __init__(self, name="mean colour", fingerprint="1", image_size=8, seconds=0.0):
        self.name, self.fingerprint, self.image_size = name, fingerprint, image_size
        self.seconds = seconds
        self.calls = []  # how many images were embedded at each call

    def fit(self, images, *, progress=None):
        pass

    def embed(self, images, *, progress=None):
        self.calls.append(len(images))
        time.sleep(self.seconds)
        pixels = images.batch(range(len(images)))[0] if hasattr(images, "batch") else torch.as_tensor(images)
        if progress is not None:
            progress("embed", len(images), len(images))
        return pixels.float().div(255).mean((2, 3))


def write_square(path: Path, colour=(0, 0, 0), size=(20, 16), **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, tuple(colour)).save(path, **options)
    return path


def write_gallery(folder: Path) -> Path:
    """Four squares, one of them in a folder of its own."""
    for name, colour in COLOURS.items():
        write_square(folder / ("warm" if name == "orange" else "") / f"{name}.png", colour)
    return folder


def by_loops(query, gallery, k):
    """Indices of the k nearest and their distances, by plain arithmetic in float64."""
    distances = [float(np.sqrt(((np.float64(query) - np.float64(row)) ** 2).sum())) for row in gallery]
    order = sorted(range(len(gallery)), key=lambda index: (distances[index], index))[:k]
    return order, [distances[index] for index in order]
