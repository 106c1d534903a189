"""Per-class weighted reservoirs of embeddings, in torch buffers."""

from typing import Any

import torch
from torch import Tensor

_BY_CLASS = ("embeddings", "log_keys", "written")


class ClassBuffers(torch.nn.Module):
    """For each class, the `capacity` embeddings with the largest log keys.

    Buffers: `labels` (C,), the classes in the order of their appearance; `embeddings` (R, capacity, D), `log_keys`
    (R, capacity), -inf where nothing is held, and `written` (R, capacity), the call that stored the entry. R >= C
    rows: some are kept in reserve, so that new classes seldom move the rest.

    Args:
        most_classes: Rows to make at once, and the most there may be; None: as many as appear.
    """

    embeddings: Tensor
    log_keys: Tensor
    written: Tensor
    labels: Tensor

    def __init__(self, capacity: int, embedding_size: int, most_classes: int | None) -> None:
        super().__init__()
        self.most_classes = most_classes
        rows = most_classes or 0
        self.register_buffer("embeddings", torch.zeros(rows, capacity, embedding_size))
        self.register_buffer("log_keys", torch.full((rows, capacity), -torch.inf))
        self.register_buffer("written", torch.zeros(rows, capacity, dtype=torch.long))
        self.register_buffer("labels", torch.zeros(0, dtype=torch.long))

    def move(self, device: torch.device) -> None:
        """Follow the embeddings, as PML's memory does."""
        if self.embeddings.device != device:
            self.to(device)

    def forget(self, before: int) -> None:
        """Drop what was stored before this call."""
        self.log_keys.masked_fill_(self.written < before, -torch.inf)

    def held(self) -> tuple[Tensor, Tensor]:
        """What is held, class by class: embeddings (M, D), labels (M,)."""
        slots = torch.nonzero(self.log_keys.flatten() > -torch.inf).squeeze(1)
        rows = slots // self.log_keys.shape[1]
        return self.embeddings.flatten(0, 1).index_select(0, slots), self.labels[rows]

    def add_classes(self, labels: Tensor) -> None:
        """Make room for the classes among these labels that are new."""
        new = torch.unique(labels)
        new = new[~torch.isin(new, self.labels)]
        if len(new) == 0:
            return
        needed = len(self.labels) + len(new)
        if self.most_classes is not None and needed > self.most_classes:
            raise ValueError(
                f"labels: got {needed} classes so far, expected at most num_classes={self.most_classes}; raise it, or "
                "give None"
            )
        if needed > len(self.log_keys):
            more = max(needed, 2 * len(self.log_keys)) - len(self.log_keys)
            for name, empty in zip(_BY_CLASS, (0, -torch.inf, 0), strict=True):
                kept = getattr(self, name)
                setattr(self, name, torch.cat([kept, kept.new_full((more, *kept.shape[1:]), empty)]))
        self.labels = torch.cat([self.labels, new])

    def store(self, embeddings: Tensor, labels: Tensor, log_keys: Tensor, call: int) -> None:
        """Stream entries by: of a class's old and new ones, those with the largest log keys stay.

        Shape:
            embeddings (B, D), labels (B,) of classes that were added, log_keys (B,) float32.
        """
        ordered, order = torch.sort(self.labels)
        classes, entry_class = torch.unique(labels, return_inverse=True)
        rows = order[torch.searchsorted(ordered, classes)]  # (U,) the classes' rows
        # The new entries class by class, best first; the k-th best can only take the place of the k-th worst.
        best = torch.argsort(log_keys, descending=True, stable=True)
        best = best[torch.argsort(entry_class[best], stable=True)]
        entry_class = entry_class[best]
        rank = torch.arange(len(best), device=best.device) - torch.searchsorted(entry_class, entry_class)
        worst, slots = torch.sort(self.log_keys[rows], dim=1)  # (U, capacity), worst first
        fits = rank < worst.shape[1]
        best, entry_class, rank = best[fits], entry_class[fits], rank[fits]
        stays = log_keys[best] > worst[entry_class, rank]
        best, entry_class, rank = best[stays], entry_class[stays], rank[stays]
        place = rows[entry_class], slots[entry_class, rank]
        self.embeddings[place] = embeddings[best].to(self.embeddings.dtype)
        self.log_keys[place] = log_keys[best]
        self.written[place] = call

    def _apply(self, fn: Any, recurse: bool = True) -> "ClassBuffers":
        # The law is in the keys: .half() and the like are meant for the embeddings only.
        log_keys = self.log_keys
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.log_keys = log_keys.to(self.embeddings.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in (*_BY_CLASS, "labels"):
            saved, kept = state_dict.get(prefix + name), getattr(self, name)
            if saved is not None:  # another number of classes had been seen
                setattr(self, name, kept.new_zeros((len(saved), *kept.shape[1:])))
        super()._load_from_state_dict(state_dict, prefix, *rest)
