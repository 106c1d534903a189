"""A PDDMLoss with given weights, embeddings and triplets for it."""

import torch

from dr_plugin.losses import PDDMLoss

LABELS = torch.tensor([0, 0, 1, 1, 1, 2])


def make_loss(size=5, seed=0, dtype=torch.float64, **arguments):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return PDDMLoss(size, **arguments).to(dtype)


def make_embeddings(count=6, size=5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def make_triplets(count=5, queries=6, references=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randint(size, (count,), generator=generator) for size in (queries, references, references)
    )
