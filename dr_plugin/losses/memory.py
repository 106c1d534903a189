"""Memories of past embeddings."""

from pytorch_metric_learning import losses


class CrossBatchMemory(losses.CrossBatchMemory):
    """PML's cross-batch memory, which also takes our losses on triplets, and can be resumed.

    It takes `DeepRankingLoss`, `LRMLLoss` and `PDDMLoss` too, where PML's has a fixed list of names. Without a miner,
    a memory means all pairs of batch and memory to any loss, `PDDMLoss` too: give this one its `HardQuadrupletMiner`.

    PML's leaves its place in the queue out of `state_dict()`, so that a
    resumed run overwrites other entries than the uninterrupted one.

    Example:
        >>> from dr_plugin.losses import DeepRankingLoss
        >>> memory = CrossBatchMemory(DeepRankingLoss(), embedding_size=128, memory_size=4096)
    """

    @staticmethod
    def supported_losses() -> list[str]:
        """Names of the losses that can be wrapped."""
        return [*losses.CrossBatchMemory.supported_losses(), "DeepRankingLoss", "LRMLLoss", "PDDMLoss"]

    def get_extra_state(self) -> dict[str, int | bool]:
        """The place in the queue, for `state_dict()`."""
        return {"queue_idx": self.queue_idx, "has_been_filled": self.has_been_filled}

    def set_extra_state(self, state: dict[str, int | bool]) -> None:
        """Go on filling the queue where it was when `state` was taken."""
        self.queue_idx, self.has_been_filled = state["queue_idx"], state["has_been_filled"]
