"""Small valid data, which all tables share."""

import numpy as np
import torch

LABELS = torch.tensor([0, 0, 0, 1, 1, 1])
POINTS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
TRIPLETS = (torch.tensor([0, 3]), torch.tensor([1, 4]), torch.tensor([3, 0]))
ROWS = np.array([[0, 1, 3], [3, 4, 0]])  # the same
SIMILAR = np.abs(np.subtract.outer(np.arange(6.0), np.arange(6.0)))  # r(i, j), each class's in strict order
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 3, 24, 24), np.uint8)
PICTURES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
