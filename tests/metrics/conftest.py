"""What tests of several modules of metrics share."""

import pytest
import torch


@pytest.fixture
def split():
    """Noisy clusters: query (30), query labels, reference (120), reference labels."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(6, 8, generator=generator)
    reference_labels = torch.arange(120) % 6
    query_labels = torch.arange(30) ** 2 % 6  # classes of 5 and of 10: their mean is not the queries' mean
    reference = centres[reference_labels] + torch.randn(120, 8, generator=generator)
    query = centres[query_labels] + torch.randn(30, 8, generator=generator)
    return query, query_labels, reference, reference_labels
