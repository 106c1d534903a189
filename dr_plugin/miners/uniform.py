"""Uniform triplets of a batch."""

import torch
from pytorch_metric_learning.miners import BaseMiner
from pytorch_metric_learning.utils import common_functions as c_f
from torch import Tensor

from dr_plugin.triplets import RANDOM_BITS, UniformTriplets


class UniformTripletMiner(BaseMiner):
    """Draw for each query a uniform positive and a uniform negative, `triplets_per_query` times.

    Every image that has a positive is a query equally often; its positives are uniform over the other images
    of its class, its negatives over all images of the other classes, each draw independent of the others (so
    a triplet may come twice). T = triplets_per_query x the queries.

    - Singletons are no queries, but may be negatives. One class only, or an empty batch: 3 empty tensors.
    - With `ref_emb` and `ref_labels`, positives and negatives index the references. All references of the
      query's class are its positives, unless the references are the batch itself (`ref_emb` is `embeddings`,
      or shares its memory): then an image is not its own positive. This differs from PML, which goes by
      `ref_labels is labels`.
    - `embeddings` say only how many images there are and where the indices belong: any dtype will do.
    - Labels on the CPU are drawn from there, and only the indices go to the embeddings' device. How many
      triplets there are depends on the labels, so that with labels on a GPU the host waits for it.

    The random numbers come from a generator of the miner's own, which lives on the CPU unless another is
    given: the same seed mines the same triplets on every device. Its state is part of `state_dict()`.

    Args:
        triplets_per_query: Triplets for each query; at least 1.
        seed: Seed of the miner's generator, at least 0; None means 0.
        generator: Draw from this one instead; not together with `seed`.
        collect_stats: As in PML. `num_triplets` is kept in any case.
    Shape:
        embeddings (B, D), labels (B,) integer, ref_emb (M, D), ref_labels (M,) integer -> 3 tensors (T,)
        long.
    Raises:
        ValueError: if an argument is out of range, if labels are not 1-D integers, if `ref_emb` comes without
            `ref_labels`, or is the batch but `ref_labels` differ from `labels`.
    Example:
        >>> miner = UniformTripletMiner(triplets_per_query=2)
        >>> query, positive, negative = miner(torch.randn(5, 8), torch.tensor([0, 0, 1, 1, 2]))
        >>> query
        tensor([0, 0, 1, 1, 2, 2, 3, 3])
    """

    def __init__(
        self,
        triplets_per_query: int = 10,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        collect_stats: bool | None = None,
    ) -> None:
        if (
            isinstance(triplets_per_query, bool)
            or not isinstance(triplets_per_query, int)
            or triplets_per_query < 1
        ):
            raise ValueError(
                f"triplets_per_query: got {triplets_per_query!r}, expected a whole number, at least 1"
            )
        if seed is not None and generator is not None:
            raise ValueError(
                "got both seed and generator, expected one of them: a generator is seeded already"
            )
        if seed is not None and (
            isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63
        ):
            raise ValueError(f"seed: got {seed!r}, expected a whole number, at least 0 and below 2**63")
        super().__init__(collect_stats=collect_stats)
        self.triplets_per_query = triplets_per_query
        self.generator = torch.Generator().manual_seed(seed or 0) if generator is None else generator
        self.add_to_recordable_attributes(list_of_names=["triplets_per_query"], is_stat=False)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """PML's, except that it leaves labels that are on the CPU there."""
        self.reset_stats()
        with torch.no_grad():
            c_f.check_shapes(embeddings, labels)
            if labels is not None and labels.device.type != "cpu":
                labels = c_f.to_device(labels, embeddings)
            if ref_emb is None:
                ref_emb, ref_labels = embeddings, labels
            c_f.check_shapes(ref_emb, ref_labels)
            mined = self.mine(embeddings, labels, ref_emb, ref_labels)
            query, positive, negative = (part.to(embeddings.device, non_blocking=True) for part in mined)
        self.output_assertion((query, positive, negative))
        return query, positive, negative

    def mine(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw the triplets; PML calls this under `no_grad`."""
        if labels is None or ref_labels is None:
            raise ValueError(
                "got no labels or ref_labels, expected a class for each embedding and each reference"
            )
        own = _same_memory(embeddings, ref_emb)
        ref_labels = c_f.to_device(ref_labels, labels)
        if own and ref_labels is not labels and not torch.equal(ref_labels, labels):
            raise ValueError(
                "ref_emb is the batch itself: got ref_labels that differ from labels, expected the same"
            )
        triplets = UniformTriplets(labels, None if own else ref_labels)
        queries = triplets.queries.unsqueeze(1)  # (Q, 1)
        bits = torch.randint(
            1 << RANDOM_BITS,
            (2, len(queries), self.triplets_per_query),
            generator=self.generator,
            device=self.generator.device,
        )
        # Not non_blocking: from a GPU's generator to labels on the CPU that would be read too early.
        positive, negative = triplets.draw(queries, bits.to(labels.device))  # (Q, per query) each
        return queries.expand_as(positive).flatten(), positive.flatten(), negative.flatten()

    def get_extra_state(self) -> Tensor:
        """The generator's state, for `state_dict()`."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Put the generator where it was when `state` was taken."""
        self.generator.set_state(state.cpu())  # generators take it from the CPU, wherever map_location put it


def _same_memory(first: Tensor, second: Tensor) -> bool:
    """Whether both are one tensor, `detach()` and whole views included."""
    return first is second or (
        first.device == second.device
        and first.data_ptr() == second.data_ptr()
        and first.shape == second.shape
        and first.stride() == second.stride()
    )
