"""Relevance from embeddings, against loops over pairs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dr_plugin.triplets import ClassLayout
from dr_plugin.triplets.embedding import EMBEDDING_KERNELS, check_embedding_kernel, embedding_values

_LABELS = st.lists(st.integers(0, 3), max_size=12).map(lambda values: torch.tensor(values, dtype=torch.long))


def _unit(rows):
    return rows / rows.norm(dim=1, keepdim=True)


def _one(kernel, bandwidth, x, y):
    if kernel == "cosine":
        return max(0.0, float(x @ y))
    if kernel == "gaussian":
        return float(torch.exp(-((x - y) ** 2).sum() / (2 * bandwidth**2)))
    return float(torch.exp(-(x - y).abs().sum() / bandwidth))


def _distance(kernel, x, y):
    return float((x - y).norm() if kernel == "gaussian" else (x - y).abs().sum())


@settings(deadline=None, max_examples=60)
@given(
    labels=_LABELS,
    others=st.none() | _LABELS,
    kernel=st.sampled_from(EMBEDDING_KERNELS),
    fixed=st.booleans(),
    seed=st.integers(0, 999),
)
def test_values_by_loops(labels, others, kernel, fixed, seed):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(len(labels), 3, generator=generator)
    references = embeddings
    if others is not None:
        references = torch.randn(len(others), 3, generator=generator)
        for j in range(0, min(len(labels), len(others)), 2):
            references[j] = embeddings[j]  # a memory may hold the image itself
    layout = ClassLayout(labels, others)
    unit, unit_references = _unit(embeddings), _unit(references)
    pairs = list(zip(*(part.tolist() for part in layout.pairs()), strict=True))

    def itself(i, j):
        return i == j if others is None else torch.equal(embeddings[i], references[j])

    bandwidth = None if kernel == "cosine" else 0.8
    if not fixed and kernel != "cosine":
        far = sorted(_distance(kernel, unit[i], unit_references[j]) for i, j in pairs if not itself(i, j))
        bandwidth = far[(len(far) - 1) // 2] if far else 1.0
    values = embedding_values(
        layout,
        embeddings,
        None if others is None else references,
        kernel=kernel,
        bandwidth=bandwidth if fixed else None,
    )
    expected = [
        0.0 if itself(i, j) else _one(kernel, bandwidth, unit[i], unit_references[j]) for i, j in pairs
    ]
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_copies_of_a_batch_within_references_are_the_images_themselves():
    labels = torch.arange(6).repeat(20)
    embeddings = torch.randn(120, 64, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        rows = embeddings.to(dtype)
        layout = ClassLayout(labels, labels.repeat(2))
        i, j = layout.pairs()
        values = embedding_values(layout, rows, torch.cat([rows + 1, rows]))
        assert torch.equal(values == 0, i + 120 == j)


def test_scale_of_the_embeddings_does_not_matter():
    layout = ClassLayout(torch.tensor([0, 0, 0, 1, 1]))
    embeddings = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    factors = torch.tensor([1.0, 1e-6, 1e6, 3, 7]).unsqueeze(1)
    torch.testing.assert_close(
        embedding_values(layout, embeddings * factors), embedding_values(layout, embeddings)
    )


def test_what_is_not_finite_has_no_relevance():
    embeddings = torch.tensor([[1.0, 0], [torch.nan, 1], [0, 1], [torch.inf, 0], [0, 0]])
    layout = ClassLayout(torch.zeros(5).long())
    values = embedding_values(layout, embeddings, bandwidth=1.0).view(5, 5)
    assert values.isfinite().all()
    assert (values[[1, 3]] == 0).all()
    assert (values[:, [1, 3]] == 0).all()
    assert values[0, 2] > 0
    assert values[0, 4] > 0  # of length 0, at distance 1


def test_autocast_does_not_lower_the_precision():
    layout = ClassLayout(torch.zeros(8).long())
    embeddings = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        values = embedding_values(layout, embeddings)
    assert torch.equal(values, embedding_values(layout, embeddings))


@pytest.mark.parametrize(
    ("kernel", "bandwidth", "message"),
    [
        ("intersection", None, "embeddings are no histograms"),
        ("gausian", None, "did you mean 'gaussian'"),
        ("cosine", 1.0, "'cosine' has none"),
        ("laplacian", 0, "bandwidth: got 0"),
    ],
)
def test_bad_kernels_are_refused(kernel, bandwidth, message):
    with pytest.raises(ValueError, match=message):
        check_embedding_kernel(kernel, bandwidth)
