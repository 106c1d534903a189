"""What the miners that draw triplets share: their generator, and which references are the batch itself."""

from typing import Any

import torch
from pytorch_metric_learning.miners import BaseMiner
from pytorch_metric_learning.utils import common_functions as c_f
from torch import Tensor

from dr_plugin.checks import check_whole, check_whole_or_none, shown
from dr_plugin.triplets import RANDOM_BITS
from dr_plugin.triplets.references import are_the_batch
from dr_plugin.triplets.uniform import checked_labels

Triplets = tuple[Tensor, Tensor, Tensor]


class RandomTripletMiner(BaseMiner):
    """Base of the miners that draw `triplets_per_query` triplets for each query; a subclass writes `draw`.

    Args:
        triplets_per_query: Triplets for each query; at least 1.
        seed: Seed of the miner's generator, at least 0; None means 0.
        generator: Draw from this one instead; not together with `seed`.
        collect_stats: As in PML.
    Raises:
        ValueError: if an argument is out of range, if labels are not 1-D integers, if `ref_emb` comes without
            `ref_labels`, or is the batch but `ref_labels` differ from `labels`.
    """

    def __init__(
        self,
        triplets_per_query: int,
        *,
        seed: int | None,
        generator: torch.Generator | None,
        collect_stats: bool | None,
    ) -> None:
        triplets_per_query = check_whole("triplets_per_query", triplets_per_query, minimum=1, below=2**31)
        if seed is not None and generator is not None:
            raise ValueError(
                "got both seed and generator, expected one of them: a generator is seeded already"
            )
        seed = check_whole_or_none("seed", seed, minimum=0)
        if generator is not None and not isinstance(generator, torch.Generator):
            raise ValueError(f"generator: got {shown(generator)}, expected a torch.Generator, or None")
        super().__init__(collect_stats=collect_stats)
        self.triplets_per_query = triplets_per_query
        self.generator = torch.Generator().manual_seed(seed or 0) if generator is None else generator
        self.add_to_recordable_attributes(list_of_names=["triplets_per_query"], is_stat=False)

    def draw(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None, ref_labels: Tensor | None
    ) -> Triplets:
        """The triplets, on any device; no references where these are the batch itself."""
        raise NotImplementedError

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Triplets:
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
            query, positive, negative = (_sent(part, embeddings.device) for part in mined)
        self.output_assertion((query, positive, negative))
        return query, positive, negative

    def mine(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> Triplets:
        """Check labels and references, and draw; PML calls this under `no_grad`."""
        if labels is None or ref_labels is None:
            raise ValueError(
                "got no labels or ref_labels, expected a class for each embedding and each reference"
            )
        ref_labels = c_f.to_device(ref_labels, labels)
        if are_the_batch(embeddings, labels, ref_emb, ref_labels):
            return self.draw(embeddings, labels, None, None)
        checked_labels(ref_labels, "ref_labels")
        return self.draw(embeddings, labels, ref_emb, ref_labels)

    def random_bits(self, shape: tuple[int, ...]) -> Tensor:
        """Whole numbers uniform over 0, ..., 2**62 - 1, on the generator's device."""
        return torch.randint(1 << RANDOM_BITS, shape, generator=self.generator, device=self.generator.device)

    def get_extra_state(self) -> Any:
        """The generator's state, for `state_dict()`."""
        return self.generator.get_state()

    def set_extra_state(self, state: Any) -> None:
        """Put the generator where it was when `state` was taken."""
        self.generator.set_state(state.cpu())  # generators take it from the CPU, wherever map_location put it


def _sent(indices: Tensor, device: torch.device) -> Tensor:
    """The indices on the device; the copy to a GPU is pinned first, as else the host might wait for what runs there."""
    if device.type == "cuda" and indices.device.type == "cpu":
        indices = indices.pin_memory()
    return indices.to(device, non_blocking=True)
