"""The class-disjoint protocol: the images of classes that are not trained on, which are query and gallery."""

from collections.abc import Sequence
from typing import Any

from dr_plugin.datasets.base import first_few

from .recipe import Recipe, RecipeError


class JoinedImages:
    """The images of two splits of one data set, one split after the other, as something to pack.

    Args:
        splits: Data sets with the same classes.
    """

    def __init__(self, *splits: Any) -> None:
        self._items = [(split, index) for split in splits for index in range(len(split))]
        self.labels = [int(label) for split in splits for label in split.labels]
        self.class_ids: list[str] = splits[0].class_ids
        self.class_names: list[str] = splits[0].class_names
        have_paths = all(getattr(split, "paths", None) is not None for split in splits)
        self.paths = [path for split in splits for path in split.paths] if have_paths else None

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        split, inner = self._items[index]
        item: tuple[Any, Any] = split[inner]
        return item


def unseen_images(recipe: Recipe, train: Any, val: Any, trained: Sequence[int]) -> tuple[Any, list[int]]:
    """What a run with ``evaluation.gallery: val`` is evaluated on.

    - Where both splits hold the same classes, as Tiny ImageNet's do: the classes that ``data.classes`` leaves, with the
      images of both splits, as none of them is trained on.
    - Where val has classes of its own, as CUB's has: these.

    ``data.unseen_classes`` chooses among them.

    Args:
        recipe: The recipe.
        train: The data set's training split.
        val: Its other split.
        trained: Labels, as ``train`` has them, of the classes trained on.
    Returns:
        The images to choose from, and the labels of the classes to take of them, ascending.
    Raises:
        RecipeError: if a class is trained on too, is not there, or fewer than two are left.
    """
    source = JoinedImages(train, val) if train.class_ids == val.class_ids else val
    ids: list[str] = source.class_ids
    known = {train.class_ids[label] for label in trained}
    left = [label for label, name in enumerate(ids) if name not in known]
    wanted = recipe.data.unseen_classes
    if isinstance(wanted, list):
        return source, _named(wanted, ids, known)
    both = [name for name in ids if name in known]
    if source is val and both and wanted is None:
        raise RecipeError(
            f"evaluation.gallery: got val, but {len(both)} of its classes are trained on ({first_few(both)}), expected "
            "none of them: choose others by data.classes or data.unseen_classes"
        )
    if len(left) < 2:
        raise RecipeError(
            f"data.classes: got {len(known)} classes to train on, which leaves {len(left)} of {len(ids)} for "
            "evaluation.gallery: val, expected at least 2"
        )
    if isinstance(wanted, int) and wanted > len(left):
        raise RecipeError(
            f"data.unseen_classes: got {wanted}, expected at most {len(left)}, the classes that are not trained on"
        )
    return source, left[:wanted]


def _named(wanted: Sequence[str], ids: Sequence[str], known: set[str]) -> list[int]:
    """Labels of the classes with these ids."""
    for name in wanted:
        if name in known or name not in ids:
            why = "which is trained on, " if name in known else ""
            such = first_few([other for other in ids if other not in known]) or "none is left"
            raise RecipeError(
                f"data.unseen_classes: got {name!r}, {why}expected ids of classes not trained on: {such}"
            )
    return sorted(ids.index(name) for name in wanted)
