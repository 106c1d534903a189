"""Where the references of a batch are the batch itself, so that an image is not its own positive."""

import torch
from torch import Tensor

from dr_plugin.triplets.embedding import fingerprints


def are_the_batch(embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> bool:
    """Whether both embeddings are one tensor, `detach()` and whole views included; labels on one device.

    Raises:
        ValueError: if they are, but the labels differ.
    """
    if not _same_memory(embeddings, ref_emb):
        return False
    if ref_labels is not labels and not torch.equal(ref_labels, labels):
        raise ValueError(
            "ref_emb is the batch itself: got ref_labels that differ from labels, expected the same"
        )
    return True


@torch.no_grad()
def itself(embeddings: Tensor, ref_emb: Tensor) -> Tensor:
    """Where a reference is the image itself, and no positive of it.

    - Both one tensor, `detach()` and whole views included: each image at its own place only.
    - Other tensors (a memory, a copy): where the embeddings, as float32, are equal to the bit. Two images of one
      embedding cannot be told apart then.

    Shape:
        embeddings (B, D), ref_emb (M, D) -> (B, M) bool.
    Example:
        >>> batch = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> itself(batch, torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 0.0]]))
        tensor([[False, False,  True],
                [ True, False, False]])
    """
    if _same_memory(embeddings, ref_emb):
        return torch.eye(len(embeddings), dtype=torch.bool, device=embeddings.device)
    return fingerprints(embeddings.float()).unsqueeze(1) == fingerprints(ref_emb.float())


def _same_memory(first: Tensor, second: Tensor) -> bool:
    return first is second or (
        first.device == second.device
        and first.numel() > 0  # what is empty has no address
        and first.data_ptr() == second.data_ptr()
        and first.shape == second.shape
        and first.stride() == second.stride()
    )
