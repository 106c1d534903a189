"""Uniform triplets of a batch."""

import torch
from torch import Tensor

from dr_plugin.miners.random_triplets import RandomTripletMiner, Triplets
from dr_plugin.triplets import UniformTriplets


class UniformTripletMiner(RandomTripletMiner):
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
        super().__init__(triplets_per_query, seed=seed, generator=generator, collect_stats=collect_stats)

    def draw(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None, ref_labels: Tensor | None
    ) -> Triplets:
        """Draw the triplets, where the labels are."""
        triplets = UniformTriplets(labels, ref_labels)
        queries = triplets.queries.unsqueeze(1)  # (Q, 1)
        bits = self.random_bits((2, len(queries), self.triplets_per_query))
        # Not non_blocking: from a GPU's generator to labels on the CPU that would be read too early.
        positive, negative = triplets.draw(queries, bits.to(labels.device))  # (Q, per query) each
        return queries.expand_as(positive).flatten(), positive.flatten(), negative.flatten()
