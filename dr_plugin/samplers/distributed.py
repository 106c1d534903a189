"""Each process's share of the batches that a sampler draws for all of them."""

from collections.abc import Iterable, Iterator, Sized
from typing import Any

from torch.utils.data import BatchSampler

from dr_plugin import distributed
from dr_plugin.checks import check_length, check_whole, shown


class DistributedBatchSampler(BatchSampler):
    """The batches of a sampler, divided among the processes of torch.distributed.

    For loops of your own under DistributedDataParallel; recipes divide their batches by themselves. The sampler must
    give the same batches on every process (the same seed everywhere, not the rank): then no image comes twice, all have
    equally many batches, and the batches of all processes together, in rank order, are those of one process. A last
    batch that is too short for all to have a part of it is left out. Alone, the sampler's batches.

    Args:
        sampler: A batch sampler, such as `ReservoirTripletSampler` or PyTorch's `BatchSampler` over a seeded sampler.
            Its `set_epoch` and its state are used as without this class.
        group: Images that stay together: 3 for packaged triplets.
    Raises:
        ValueError: if `group` is not at least 1, or the sampler is none; from a pass, if a batch is no whole number of
            groups, one that is not the last has fewer groups than there are processes, or it begins with
            another batch than on other processes.
    Example:
        >>> from torch.utils.data import BatchSampler
        >>> list(DistributedBatchSampler(BatchSampler(range(6), 6, drop_last=True), group=3))  # one process
        [[0, 1, 2, 3, 4, 5]]
    """

    def __init__(self, sampler: Any, *, group: int = 1) -> None:
        self.group = check_whole("group", group, minimum=1)
        check_length("sampler", sampler, "a batch sampler")
        if not isinstance(sampler, Iterable):
            raise ValueError(f"sampler: got {shown(sampler)}, expected a batch sampler")
        self._batches: Any = sampler
        super().__init__(sampler, getattr(sampler, "batch_size", 1), drop_last=False)

    def __len__(self) -> int:
        """Batches an epoch, on each process."""
        count, plain = len(self._batches), self._batches
        if isinstance(plain, BatchSampler) and not plain.drop_last and isinstance(plain.sampler, Sized):
            last = len(plain.sampler) % plain.batch_size
            count -= type(plain) is BatchSampler and 0 < last < self.group * distributed.world_size()
        return count

    def __iter__(self) -> Iterator[list[int]]:
        for number, batch in enumerate(self._batches):
            if number == 0:
                _check_same(list(batch))
            size = check_length("sampler", batch, "batches of indices")
            groups, rest = divmod(size, self.group)
            if number == len(self):
                return
            if rest or groups < distributed.world_size():
                raise ValueError(
                    f"sampler: got a batch of {size} for {distributed.world_size()} processes in groups of "
                    f"{self.group}, expected whole groups and one for each process at least; change its batch_size"
                )
            own = distributed.share(groups)
            yield list(batch[own.start * self.group : own.stop * self.group])

    def set_epoch(self, epoch: int) -> None:
        """Tell the sampler which epoch the next pass is of, where it wants to know."""
        if hasattr(self._batches, "set_epoch"):
            self._batches.set_epoch(epoch)


def _check_same(batch: list[int]) -> None:
    """ValueError unless the pass begins with the same batch on all processes."""
    if any(other != batch for other in distributed.from_all(batch)):
        raise ValueError(
            f"sampler: got other batches on rank {distributed.rank()} than on others, expected the same on all; make "
            "it with one seed, not with the rank's or none"
        )
