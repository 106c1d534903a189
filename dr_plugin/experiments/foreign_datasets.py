"""PML's and torchvision's data sets with the attributes of ours, and guarded from what PML's own do in silence."""

import os
from pathlib import Path
from typing import Any

import torch
from pytorch_metric_learning.datasets.base_dataset import BaseDataset

from dr_plugin.datasets.base import first_few

from .problems import RecipeError
from .schema import Slot


def is_pml(cls: type) -> bool:
    """Whether this is one of the data sets that come with PML."""
    return cls.__module__.startswith("pytorch_metric_learning.")


def name_as_ours(slot: Slot, dataset: Any) -> None:
    """Give a data set ``labels``, ``class_ids`` and ``class_names``, from ``targets`` and ``classes`` if need be.

    Raises:
        RecipeError: if it has no labels, or is one of PML's and not whole.
    """
    if getattr(dataset, "labels", None) is None:
        if getattr(dataset, "targets", None) is None:
            raise RecipeError(
                f"{slot.place}: {slot.type} has neither labels nor targets, expected a label an image"
            )
        dataset.labels = torch.as_tensor(dataset.targets).tolist()
    if is_pml(type(dataset)) and isinstance(dataset, BaseDataset):
        _check_files(slot, dataset)
        _number_classes(dataset)
    if getattr(dataset, "class_ids", None) is None:
        names = getattr(dataset, "classes", None) or range(max(dataset.labels, default=-1) + 1)
        dataset.class_ids = [str(name) for name in names]
    if getattr(dataset, "class_names", None) is None:
        dataset.class_names = dataset.class_ids


def not_unpacked(slot: Slot, error: FileNotFoundError) -> RecipeError:
    """What is wrong where a data set of PML's found a file missing: it does not look itself, nor tell why."""
    root = str(slot.arguments.get("root"))
    file = os.path.relpath(str(error.filename), root)
    wanted = "the data set's archive unpacked there, or an empty folder and download: true"
    if slot.arguments.get("download"):
        wanted = "the data set's archive unpacked there, or a folder that is empty: into another PML downloads nothing"
    return RecipeError(f"{slot.place}.root: got {root!r}, which lacks {file}, expected {wanted}")


def _check_files(slot: Slot, dataset: Any) -> None:
    """PML unpacks an archive without a check and lists its images from a text file: some may not be there."""
    where = f"{slot.place}.root: got {str(slot.arguments.get('root'))!r}, which"
    if not dataset.paths:
        raise RecipeError(f"{where} holds no image of the split {dataset.split!r}, expected some")
    missing = [path for path in dataset.paths if not os.path.isfile(path)]
    if missing:
        names = [os.path.relpath(path, dataset.root) for path in missing]
        raise RecipeError(
            f"{where} lacks {len(missing)} of {len(dataset.paths)} images, such as {first_few(names)}; expected the "
            "whole archive: unpack it again"
        )


def _number_classes(dataset: Any) -> None:
    """Labels 0..C-1; each class keeps its number as its id, by which the splits can be told apart.

    Its name for people is the folder of its images, where each class has one of its own.
    """
    present = sorted(set(dataset.labels))
    folders: list[set[str]] = [set() for _ in present]
    place = {label: index for index, label in enumerate(present)}
    dataset.labels = [place[label] for label in dataset.labels]
    for path, label in zip(dataset.paths, dataset.labels, strict=True):
        folders[label].add(Path(path).parent.name)
    dataset.class_ids = [str(label) for label in present]
    names = [name for some in folders for name in some]
    own = len(names) == len(set(names)) == len(present)
    dataset.class_names = names if own else dataset.class_ids
