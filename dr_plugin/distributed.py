"""What processes that train together exchange, on the process group of torch.distributed.

All of them hold the same weights, draw the same batches and mine the same triplets; they divide the images of a batch
among them (a stream is divided itself). So each step needs one exchange beside the gradients': `gather_rows`. Every
function does the obvious where torch.distributed is not initialised: there is one process then, of rank 0.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import reduce
from itertools import accumulate
from typing import Any, Protocol, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")
M = TypeVar("M", bound="Mergeable")

# How long processes wait for one another: rank 0 alone packs images and writes the report.
_PATIENCE = timedelta(days=1)


class Mergeable(Protocol):
    """Something two of which make a third."""

    def merge(self: M, other: M, /) -> M:
        """The third."""


def rank() -> int:
    """Of this process, 0, 1, ..."""
    return dist.get_rank() if _joined() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _joined() else 1


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return rank() == 0


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that torchrun started, for the length of the block; alone, do nothing.

    Gloo exchanges what lies on the CPU, NCCL what lies on a GPU.
    """
    if _joined() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    try:
        _meet()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ConnectionError(f"the processes could not join: {reason}; is one of them gone?") from error
    yield
    dist.destroy_process_group()  # not after an error: it could wait for processes that are gone


def _meet() -> None:
    store, number, size = next(rendezvous("env://"))
    # Started anew after a loss, processes would find the addresses of those that are gone.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        store=dist.PrefixStore(f"attempt {attempt}", store),  # type: ignore[attr-defined]
        rank=number,
        world_size=size,
        timeout=_PATIENCE,
    )


def check_group() -> None:
    """See that the processes can exchange what lies on the CPU, too.

    Raises:
        ValueError: if their group is NCCL's alone.
    """
    if world_size() > 1 and "cpu:" not in (found := dist.get_backend_config()):
        raise ValueError(
            f"torch.distributed: got the backend {found}, expected one for CPUs too: "
            'init_process_group("cpu:gloo,cuda:nccl")'
        )


def is_exchange_failure(error: RuntimeError) -> bool:
    """Whether an exchange failed, mostly because another process is gone; Gloo says so in the text alone."""
    told = ("gloo", "Gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
    return world_size() > 1 and (
        isinstance(error, dist.DistError) or any(text in str(error) for text in told)
    )


def shares(total: int) -> list[int]:
    """How many of ``total`` rows each process takes: as many as the others, the first ones what is left over."""
    whole, rest = divmod(total, world_size())
    return [whole + (number < rest) for number in range(world_size())]


def share(total: int) -> slice:
    """The rows of ``total`` that this process takes; in rank order the processes' parts make the whole."""
    sizes = shares(total)
    start = sum(sizes[: rank()])
    return slice(start, start + sizes[rank()])


def gather_rows(rows: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
    """The rows of all processes in rank order: (sum of the sizes, ...), alike on each.

    PML's own gather puts the own rows first, so that the order, and with it what a random miner picks, differs between
    the processes. The gradient of a loss of the result reaches the own rows alone, times the number of processes:
    DistributedDataParallel takes the mean over the processes, which then is the gradient of one process on all rows.

    Args:
        rows: This process's (n, ...); n may differ between processes.
        sizes: n of each process. None: they are asked for, one more exchange.
    """
    if world_size() == 1:
        return rows
    sizes = sizes_of(rows) if sizes is None else sizes
    if len(rows) != sizes[rank()]:
        raise ValueError(f"sizes: got {sizes[rank()]} for rank {rank()}, expected {len(rows)}, its rows")
    return cast(Tensor, _GatherRows.apply(rows, sizes))


def sizes_of(rows: Tensor) -> list[int]:
    """How many rows each process has."""
    if world_size() == 1:
        return [len(rows)]
    found = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(world_size())]
    dist.all_gather(found, torch.tensor([len(rows)], device=rows.device))
    return torch.cat(found).tolist()


def averaged(value: Tensor) -> Tensor:
    """The mean over the processes; ``value`` itself stays as it is."""
    if world_size() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Put the mean over the processes into each gradient, in one exchange; all must have the same gradients."""
    gradients = [one.grad for one in parameters if one.grad is not None]
    if world_size() == 1 or not gradients:
        return
    flat = averaged(torch.cat([one.flatten() for one in gradients]))
    for own, mean in zip(gradients, flat.split([one.numel() for one in gradients]), strict=True):
        own.copy_(mean.view_as(own))


def in_parallel(module: nn.Module, example: Tensor) -> nn.Module:
    """The module under DistributedDataParallel, which shares its weights; the module itself for one process.

    Args:
        module: On its device.
        example: What it can be called with, to see whether there are weights that get no gradient.
    """
    weights = [one for one in module.parameters() if one.requires_grad]
    if world_size() == 1 or not weights:
        return module
    mode = module.training
    with torch.compiler.set_stance("force_eager"):  # a compiled graph of this would be of no further use
        module.eval()(example).sum().backward()
    idle = any(one.grad is None for one in weights)
    module.zero_grad()
    return DistributedDataParallel(
        module.train(mode),
        device_ids=None if example.device.type == "cpu" else [example.device],
        gradient_as_bucket_view=True,
        find_unused_parameters=idle,
    )


def take_from_first(module: nn.Module) -> None:
    """Give the module rank 0's weights and buffers: what batch normalisation has counted differs between processes."""
    if world_size() > 1:
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.detach(), src=0)


def from_first(value: T) -> T:
    """Rank 0's value, pickled, on all processes; waits for it."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


def done_by_first(action: Callable[[], T]) -> T:
    """What rank 0's ``action`` gives, on all processes; an exception of its is raised on all."""
    if world_size() == 1:
        return action()
    answer: tuple[bool, Any] = (True, None)
    if is_first():
        try:
            answer = (True, action())
        except Exception as error:  # whatever it is, the others would wait for ever
            answer = (False, error)
    good, value = from_first(answer)
    if not good:
        raise value
    return cast(T, value)


def any_of(asked: bool) -> bool:
    """Whether it is so on any process."""
    if world_size() == 1:
        return asked
    found = torch.tensor(int(asked))
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return bool(found)


def from_all(value: T) -> list[T]:
    """The value of each process, pickled, in rank order; waits for all."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def swapped(parts: Sequence[bytes], sizes: Sequence[int]) -> list[bytes]:
    """What each process sends to this one, in rank order, for what this one sends to each.

    Args:
        parts: Bytes for each process.
        sizes: How many come from each.
    """
    if world_size() == 1:
        return list(parts)
    outgoing = torch.frombuffer(bytearray(b"".join(parts)) or bytearray(1), dtype=torch.uint8)
    incoming = torch.empty(sum(sizes), dtype=torch.uint8)
    outgoing = outgoing[: sum(map(len, parts))]
    dist.all_to_all_single(incoming, outgoing, list(sizes), [len(part) for part in parts])
    ends = list(accumulate(sizes))
    whole = incoming.numpy().tobytes()
    return [whole[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def merged(own: M) -> M:
    """What all processes hold, merged in rank order: alike on each; alone, `own` itself.

    For a `WeightedReservoir` or `ClassReservoirs` of each process's part of a stream: the largest keys of all parts are
    those that one reservoir would hold of the whole stream, so its law is that of one stream. Each must have been
    made with a seed of its own, such as (7, rank), and none may hold an item of another's.

    Raises:
        ValueError: if they cannot be merged, see their `merge`.
    """
    return reduce(lambda one, other: one.merge(other), from_all(own))


@contextmanager
def first_here_goes_first() -> Iterator[None]:
    """The block runs on one process of each machine, then on the others: they find the files that it wrote.

    After an error it runs on the others all the same, which find the same error instead of waiting for ever.
    """
    later = world_size() > 1 and int(os.environ.get("LOCAL_RANK", rank())) > 0
    if later:
        from_all(None)
    try:
        yield
    finally:
        if not later:
            from_all(None)


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


class _GatherRows(torch.autograd.Function):
    """See `gather_rows`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        start = sum(sizes[: rank()])
        ctx.part = slice(start, start + sizes[rank()])
        padded = rows.new_zeros((max(sizes), *rows.shape[1:]))  # all_gather wants one shape
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][ctx.part] * world_size(), None
