"""A memory of past embeddings that is a weighted reservoir for each class."""

from typing import Any, Literal, get_args

import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils import common_functions as c_f
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from torch import Tensor

from dr_plugin.checks import check_whole, check_whole_or_none, shown
from dr_plugin.losses.class_buffers import ClassBuffers
from dr_plugin.losses.example_weights import LossTerms, loss_terms, mean_relevances, query_losses
from dr_plugin.losses.explicit_triplets import check_lengths
from dr_plugin.losses.memory import CrossBatchMemory
from dr_plugin.losses.triplet_budget import (
    JoinedTriplets,
    LabelTriplets,
    ListedTriplets,
    NumberedTriplets,
    at_most,
)
from dr_plugin.triplets.embedding import check_embedding_kernel

Indices = tuple[Tensor, ...]  # 3 or 4 of PML's
Labelled = tuple[Tensor, Tensor]  # embeddings and their labels
Weigh = Literal["relevance", "given", "loss"]
# They join pairs to triplets.
_TRIPLET_LOSSES = (
    "TripletMarginLoss",
    "MarginLoss",
    "DeepRankingLoss",
    "LRMLLoss",
    "PDDMLoss",
)


class ReservoirMemory(CrossBatchMemory):
    """Cross-batch memory that keeps a weighted reservoir of past embeddings for each class.

    Called like PML's `CrossBatchMemory`, and takes its place. Its queue forgets by age alone, so that a rare class is
    soon gone; here a class keeps the `capacity_per_class` of its embeddings with the largest keys u^(1/w), u uniform,
    w the weight (A-Res): every class seen stays represented, and what weighs more is more likely to stay.

    The references of a call are the batch itself, detached, where an image is not its own positive, and then
    what is held. As long as nothing had to go they are those of `CrossBatchMemory`. Then the loss is
    computed, and at last the batch streams into the reservoirs: a loss that raises leaves them as they were.

    What weighs an example (`weigh`):

    - "relevance": the mean relevance to the other references of its class, by the kernel of the l2-normalised
      embeddings; 1 where there are none. The mean, not the sum of eq. (6): the sum would grow with the memory.
    - "given": the weight told by `observe(weights)` before the call, one for each image of the batch.
    - "loss": the mean of the loss terms (triplets, pairs, or its own) in which it is the query, before reduction.
    - None: all equal; a uniform sample of the class's past.

    - An example of weight 0 is held where there is room, and is the first to go. One that is not finite is not held.
    - Triplets: a loss that takes triplets gets at most `max_triplets`, a uniform sample where there would be more (see
      `at_most`); without a miner these are all triplets of batch and references, counted but not enumerated. So do
      triplets of a miner for a loss that takes pairs. Pairs are never more than the (B, M) matrix of PML's losses.
    - `indices_tuple`, what a trainer's miner found in the batch, is added; its indices mean the batch. (PML's reads
      them as places in the queue.)
    - `enqueue_mask`: these of the batch are references and stream in, the others are the queries, as in PML.
    - An entry older than `max_age` calls is dropped, and its place is free for the class's next. What had been
      turned away meanwhile does not come back: with ageing, the law is A-Res only within the time that is left.
    - An image that is seen again is a new entry; its old one stays until its key or its age lets it go.

    The random numbers come from a generator of its own, on the CPU; it is in `state_dict()` with the entries, their
    keys and ages, so that a resumed run goes on to the same numbers.

    Args:
        loss: A loss that `supported_losses()` names.
        embedding_size: D.
        capacity_per_class: Embeddings held of a class; at least 1.
        miner: A PML miner, called with the memory as references. None: all pairs, or all triplets.
        num_classes: The most classes there may be, whose memory is taken at once; None: it grows as classes appear.
        weigh: See above.
        max_triplets: See above; None: no limit.
        max_age: Calls that an entry may serve after its own; None: no limit.
        kernel, bandwidth: For "relevance", see `embedding_values`.
        seed: Seed of the generator, at least 0.
    Shape:
        embeddings (B, D), labels (B,) integer, indices_tuple of 3 or 4, enqueue_mask (B,) bool -> scalar (or what
        the reducer gives).
    Raises:
        ValueError: if an argument is out of range, the batch does not match, or `observe` was not called (or was not
            asked for).
    Example:
        >>> from pytorch_metric_learning.losses import TripletMarginLoss
        >>> memory = ReservoirMemory(TripletMarginLoss(), embedding_size=8, capacity_per_class=4)
        >>> loss = memory(torch.randn(6, 8), torch.tensor([0, 0, 0, 1, 1, 1]))
        >>> [len(part) for part in memory.held()]
        [6, 6]

    References:
        Wang et al., Cross-Batch Memory for Embedding Learning, CVPR 2020.
        Wang et al., Learning Fine-grained Image Similarity with Deep Ranking, CVPR 2014, section 5.1.
        Efraimidis and Spirakis, Weighted random sampling with a reservoir, 2006.
    """

    def __init__(
        self,
        loss: torch.nn.Module,
        embedding_size: int,
        capacity_per_class: int = 16,
        miner: torch.nn.Module | None = None,
        *,
        num_classes: int | None = None,
        weigh: Weigh | None = "relevance",
        max_triplets: int | None = 1 << 16,
        max_age: int | None = None,
        kernel: str = "gaussian",
        bandwidth: float | None = None,
        seed: int = 0,
    ) -> None:
        embedding_size = check_whole("embedding_size", embedding_size, minimum=1, below=2**31)
        capacity_per_class = check_whole("capacity_per_class", capacity_per_class, minimum=1, below=2**31)
        num_classes = check_whole_or_none("num_classes", num_classes, minimum=1, below=2**31)
        max_triplets = check_whole_or_none("max_triplets", max_triplets, minimum=1)
        max_age = check_whole_or_none("max_age", max_age, minimum=1)
        seed = check_whole("seed", seed, minimum=0)
        if not (weigh is None or (isinstance(weigh, str) and weigh in get_args(Weigh))):
            raise ValueError(
                f"weigh: got {shown(weigh)}, expected one of {', '.join(get_args(Weigh))} or None"
            )
        check_embedding_kernel(kernel, bandwidth)
        if (name := type(loss).__name__) not in self.supported_losses():
            raise ValueError(f"loss: got {name}, expected one of {', '.join(self.supported_losses())}")
        if miner is not None and not callable(miner):
            raise ValueError(f"miner: got {shown(miner)}, expected one of PML's, or None")
        super(losses.CrossBatchMemory, self).__init__(loss=loss)  # not its own, which makes a queue
        self.loss, self.miner = loss, miner
        self.embedding_size, self.capacity_per_class = embedding_size, capacity_per_class
        self.num_classes, self.weigh = num_classes, weigh
        self.max_triplets, self.max_age = max_triplets, max_age
        self.kernel, self.bandwidth = kernel, bandwidth
        self.generator = torch.Generator().manual_seed(seed)
        self.add_to_recordable_attributes(
            list_of_names=["embedding_size", "capacity_per_class"], is_stat=False
        )
        self.reset_queue()

    def reset_queue(self) -> None:
        """Forget everything but the place in the random numbers."""
        self.memory = ClassBuffers(self.capacity_per_class, self.embedding_size, self.num_classes)
        self.calls = 0
        self._observed: Tensor | None = None

    def held(self) -> tuple[Tensor, Tensor]:
        """What the memory holds: embeddings (M, D), labels (M,), class by class."""
        return self.memory.held()

    def observe(self, weights: Tensor) -> None:
        """Tell the weights of the next call's batch, (B,), finite and at least 0; for `weigh="given"`."""
        if self.weigh != "given":
            raise ValueError(f"observe: got weights with weigh={self.weigh!r}, expected weigh='given'")
        weights = torch.as_tensor(weights).detach().float()
        if weights.ndim != 1 or not bool((weights.isfinite() & (weights >= 0)).all()):
            raise ValueError(
                f"weights: got shape {tuple(weights.shape)}, expected (B,), finite and at least 0, one for each image"
            )
        self._observed = weights

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: tuple[Tensor, ...] | None = None,
        enqueue_mask: Tensor | None = None,
    ) -> Any:
        """The loss of the batch against memory and batch; then the batch streams in."""
        self._check(embeddings, labels, indices_tuple, enqueue_mask)
        if embeddings.dtype in (torch.bfloat16, torch.float16):  # which PML's distances do not all take
            embeddings = embeddings.float()
        self.reset_stats()
        self.memory.move(embeddings.device)
        labels = c_f.to_device(labels, embeddings)
        queries, entries, itself = (embeddings, labels), (embeddings.detach(), labels), None
        if enqueue_mask is not None:
            enqueue_mask = enqueue_mask.to(embeddings.device)
            queries = embeddings[~enqueue_mask], labels[~enqueue_mask]
            entries = embeddings.detach()[enqueue_mask], labels[enqueue_mask]
        references = self._references(*entries)
        if enqueue_mask is None:
            itself = torch.arange(len(labels), device=labels.device)
        indices = self._indices(queries, references, itself, indices_tuple)
        with loss_terms(self.loss) as terms:
            loss = self.loss(*queries, indices, *references)
        with torch.no_grad():
            self._stream(*entries, self._weights(entries, references, terms, enqueue_mask))
        return loss

    def _check(
        self, embeddings: Tensor, labels: Tensor, indices_tuple: Indices | None, enqueue_mask: Tensor | None
    ) -> None:
        if indices_tuple is not None and enqueue_mask is not None:
            raise ValueError("got both indices_tuple and enqueue_mask, expected one of them at most")
        c_f.check_shapes(embeddings, labels)
        if indices_tuple is not None:
            check_lengths(indices_tuple)
        if labels is None or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            got = "no labels" if labels is None else f"labels of {labels.dtype}"
            raise ValueError(f"got {got}, expected an integer class for each embedding")
        if embeddings.ndim != 2 or embeddings.shape[1] != self.embedding_size:
            raise ValueError(
                f"embeddings: got shape {tuple(embeddings.shape)}, expected (B, embedding_size={self.embedding_size})"
            )
        if enqueue_mask is not None:
            if enqueue_mask.dtype != torch.bool or enqueue_mask.shape != labels.shape:
                raise ValueError(
                    f"enqueue_mask: got {enqueue_mask.dtype} of shape {tuple(enqueue_mask.shape)}, expected bool of "
                    f"shape {tuple(labels.shape)}"
                )
            if self.weigh == "loss":
                raise ValueError(
                    "enqueue_mask: got one with weigh='loss', but what it streams in is no query"
                )
        if self.weigh == "given" and (self._observed is None or len(self._observed) != len(embeddings)):
            count = "none" if self._observed is None else len(self._observed)
            raise ValueError(
                f"weights: got {count} for {len(embeddings)} embeddings, expected observe(weights) before each call"
            )

    def _references(self, entries: Tensor, labels: Tensor) -> Labelled:
        """The batch's entries, and then what is held and not too old."""
        self.memory.add_classes(labels.long())
        if self.max_age is not None:
            self.memory.forget(before=self.calls - self.max_age)
        held, held_labels = self.memory.held()
        return torch.cat([entries, held.to(entries.dtype)]), torch.cat([labels, held_labels.to(labels.dtype)])

    def _indices(
        self, queries: Labelled, references: Labelled, itself: Tensor | None, given: Indices | None
    ) -> Indices:
        """The triplets or pairs for the loss."""
        labels, ref_labels = queries[1], references[1]
        takes_triplets = type(self.loss).__name__ in _TRIPLET_LOSSES
        found = [] if given is None else [given]
        if self.miner is not None:
            comparable = len(labels) > 0 and len(ref_labels) > 0  # PML's miners fail otherwise
            mined = self.miner(*queries, *references) if comparable else (labels.new_zeros(0).long(),) * 3
            found.insert(0, _without_itself(mined, itself))
        elif not takes_triplets:
            found.insert(0, _without_itself(lmu.get_all_pairs_indices(labels, ref_labels), itself))
        if not takes_triplets and len(found[0]) == 4:
            pairs = [lmu.convert_to_pairs(indices, labels) for indices in found]
            return tuple(torch.cat(column) for column in zip(*pairs, strict=True))
        sources: list[NumberedTriplets] = [
            ListedTriplets(*indices) if len(indices) == 3 else JoinedTriplets(*indices) for indices in found
        ]
        if self.miner is None:
            sources.insert(0, LabelTriplets(labels, ref_labels, itself))
        return at_most(self.max_triplets, sources, self.generator, labels.device)

    def _weights(
        self, entries: Labelled, references: Labelled, terms: LossTerms, enqueue_mask: Tensor | None
    ) -> Tensor:
        """What each entry weighs, (entries,)."""
        if self.weigh == "relevance":
            return mean_relevances(*entries, *references, kernel=self.kernel, bandwidth=self.bandwidth)
        if self.weigh == "loss":
            return query_losses(terms, len(entries[1]), entries[1].device)
        if self._observed is None:
            return entries[0].new_ones(len(entries[1]), dtype=torch.float32)
        weights, self._observed = self._observed.to(entries[1].device), None
        return weights if enqueue_mask is None else weights[enqueue_mask]

    def _stream(self, entries: Tensor, labels: Tensor, weights: Tensor) -> None:
        """Let the entries stream by the reservoirs of their classes."""
        arrivals = torch.empty(len(labels), dtype=torch.float64, device=self.generator.device)
        arrivals = arrivals.exponential_(generator=self.generator).to(labels.device, torch.float32)
        # -log key = Exp(1) / w; a weight of 0 goes behind all others, but still before an empty place (-inf).
        least = torch.finfo(torch.float32).min
        log_keys = (-arrivals / weights).clamp(min=least)
        log_keys = torch.where(entries.isfinite().all(dim=1), log_keys, -torch.inf)
        self.memory.store(entries, labels.long(), log_keys, self.calls)
        self.calls += 1

    def get_extra_state(self) -> dict[str, Any]:
        """The calls so far and the generator's state, for `state_dict()`."""
        return {"calls": self.calls, "generator": self.generator.get_state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.calls = state["calls"]
        self.generator.set_state(state["generator"].cpu())


def _without_itself(indices: Indices, itself: Tensor | None) -> Indices:
    """Without the triplets, or positive pairs, whose positive is the query itself."""
    if itself is None:
        return indices
    other = indices[1] != itself[indices[0]]
    if len(indices) == 3:
        return tuple(part[other] for part in indices)
    return indices[0][other], indices[1][other], *indices[2:]
