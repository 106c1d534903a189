"""Where a reference is the image itself."""

import pytest
import torch

from dr_plugin.triplets.references import itself


def _rows(count=5, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, generator=generator).to(dtype)


@pytest.mark.parametrize("view", [lambda e: e, torch.Tensor.detach, lambda e: e[:], lambda e: e.view(5, 3)])
def test_same_memory_is_itself_at_its_own_place_only(view):
    embeddings = _rows().requires_grad_()
    with torch.no_grad():
        embeddings[3] = embeddings[1]  # two images of one embedding
    assert torch.equal(itself(embeddings, view(embeddings)), torch.eye(5, dtype=torch.bool))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_copies_in_another_tensor_are_found(dtype):
    embeddings, others = _rows(dtype=dtype), _rows(4, dtype, seed=1)
    references = torch.cat([others, embeddings.flip(0), embeddings[:2]])
    expected = [[bool((x == y).all()) for y in references] for x in embeddings]
    assert itself(embeddings, references).tolist() == expected
    assert sum(map(sum, expected)) == 7
    assert itself(embeddings, references.float()).tolist() == expected  # a memory of another type


def test_part_of_the_batch_is_found_in_its_place():
    embeddings = _rows()
    assert itself(embeddings, embeddings[2:]).nonzero().tolist() == [[2, 0], [3, 1], [4, 2]]


def test_permuted_numbers_are_another_embedding():
    assert not itself(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[2.0, 1.0, 3.0]])).any()


@pytest.mark.parametrize(("images", "references"), [(0, 0), (0, 3), (3, 0)])
def test_none_is_itself_without_images(images, references):
    assert itself(_rows(images), _rows(references)).shape == (images, references)
