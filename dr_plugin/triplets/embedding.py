"""Relevance from the current embeddings, class by class."""

from collections.abc import Iterator

import torch
from torch import Tensor

from dr_plugin.triplets.kernels import Kernel, check_kernel, has_bandwidth, median_bandwidth
from dr_plugin.triplets.layout import ClassLayout

EMBEDDING_KERNELS = ("gaussian", "laplacian", "cosine")


def check_embedding_kernel(kernel: object, bandwidth: object) -> None:
    """ValueError unless the kernel is one for embeddings, and the bandwidth, if any, one for it."""
    check_kernel(kernel, bandwidth)
    if kernel not in EMBEDDING_KERNELS:
        raise ValueError(
            f"kernel: got {kernel!r}, expected one of {', '.join(EMBEDDING_KERNELS)}: embeddings are no histograms"
        )


@torch.no_grad()
def embedding_values(
    layout: ClassLayout,
    embeddings: Tensor,
    references: Tensor | None = None,
    *,
    kernel: str = "gaussian",
    bandwidth: float | None = None,
) -> Tensor:
    """r of each entry of the layout: the kernel of the l2-normalised float32 embeddings.

    Computed where the embeddings are, without waiting for them. Memory O(embeddings + entries).

    - A reference that is the image itself, or whose embedding equals the image's to the bit, has relevance 0.
    - A zero embedding stays zero; one that is not finite has relevance 0 to all.

    Args:
        layout: On the CPU.
        references: None: the embeddings themselves, as the layout says.
        kernel: One of `EMBEDDING_KERNELS`, see `Kernel`.
        bandwidth: For gaussian and laplacian; None: the median distance above 0 among the entries.
    Shape:
        embeddings (B, D), references (M, D) -> (E,) float32.
    """
    values = torch.empty(layout.size, device=embeddings.device)
    itself = torch.empty(layout.size, device=embeddings.device, dtype=torch.bool)
    for query, reference, entries in _equal_blocks(layout, embeddings.device):
        x = embeddings[query].float()  # (k, n, D)
        y = (embeddings if references is None else references)[reference].float()  # (k, m, D)
        if references is None:
            same = query.unsqueeze(2) == reference.unsqueeze(1)
        else:
            same = fingerprints(x).unsqueeze(2) == fingerprints(y).unsqueeze(1)
        itself[entries] = same
        values[entries] = _compare(kernel, x, y)
    if has_bandwidth(kernel):
        values.masked_fill_(itself, 0.0)
        scale = median_bandwidth(values) if bandwidth is None else float(bandwidth)
        points = (values / scale).unsqueeze(1)  # of a line, as far apart as the embeddings
        values = Kernel(kernel, 1.0).paired(points, torch.zeros_like(points))
    return values.masked_fill_(itself, 0.0).nan_to_num_(nan=0.0)


def _equal_blocks(layout: ClassLayout, device: torch.device) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Classes of one shape at a time: queries (k, n), references (k, m) and entries (k, n, m) of k classes."""
    # Classes without references may begin at one place with the next class.
    key = layout.start * (len(layout.references) + 1) + layout.count
    _, rows = torch.unique_consecutive(key, return_counts=True)
    first = rows.cumsum(0) - rows
    start, count, offset = layout.start[first], layout.count[first], layout.offset[first]
    for n, m in torch.unique(torch.stack((rows, count), 1), dim=0).tolist():
        alike = torch.nonzero((rows == n) & (count == m))  # (k, 1)
        query = layout.queries[first[alike] + torch.arange(n)]
        reference = layout.references[start[alike] + torch.arange(m)]
        entries = (offset[alike] + torch.arange(n * m)).view(len(alike), n, m)
        yield query.to(device), reference.to(device), entries.to(device)


def _compare(kernel: str, x: Tensor, y: Tensor) -> Tensor:
    """Distances, or cosines, of each block: (k, n, D), (k, m, D) -> (k, n, m)."""
    x, y = (torch.nn.functional.normalize(part, dim=-1) for part in (x, y))
    if kernel == "laplacian":
        return torch.cdist(x, y, p=1)
    with torch.autocast(x.device.type, enabled=False):
        products = torch.bmm(x, y.transpose(1, 2))
    if kernel == "cosine":
        return products.clamp_(0, 1)
    lengths = x.square().sum(2).unsqueeze(2) + y.square().sum(2).unsqueeze(1)  # 2, but for zeros
    return lengths.sub_(products, alpha=2).clamp_(min=0).sqrt_()


def fingerprints(rows: Tensor) -> Tensor:
    """A number for each row that equal rows share, and others but by one chance in 2**64: (..., D) -> (...) long."""
    generator = torch.Generator().manual_seed(rows.shape[-1])
    factors = torch.randint(-(2**63), 2**63 - 1, rows.shape[-1:], generator=generator) | 1
    return (rows.contiguous().view(torch.int32) * factors.to(rows.device)).sum(-1)


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision as float32; what is wider, as it is."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def check_size(embeddings: Tensor, ref_emb: Tensor) -> None:
    """ValueError unless (B, D) and (M, D) have one D."""
    if embeddings.ndim == ref_emb.ndim == 2 and embeddings.shape[1] != ref_emb.shape[1]:
        raise ValueError(
            f"ref_emb: got size {ref_emb.shape[1]}, expected {embeddings.shape[1]}, as embeddings"
        )
