"""What the losses on explicit triplets make of indices."""

import pytest
import torch

from dr_plugin.losses import DeepRankingLoss, PDDMLoss
from dr_plugin.losses.explicit_triplets import SquaredMargins


def _rows(count, seed=0):
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed))


def _indices(*triplets, dtype=torch.long):
    return torch.tensor(triplets, dtype=dtype).unbind(1)


@pytest.fixture(params=["DeepRankingLoss", "PDDMLoss"])
def loss_func(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DeepRankingLoss(3.0) if request.param == "DeepRankingLoss" else PDDMLoss(5)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
@pytest.mark.parametrize("repeats", [1, 30], ids=["few", "more than all pairs"])
def test_indices_of_any_integer_type_are_taken(loss_func, dtype, repeats):
    triplets = [(0, 1, 2), (1, 0, 3), (3, 2, 0)] * repeats
    expected = loss_func(_rows(4), indices_tuple=_indices(*triplets))
    embeddings = _rows(4).requires_grad_()
    loss = loss_func(embeddings, indices_tuple=_indices(*triplets, dtype=dtype))
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert embeddings.grad.any()


@pytest.mark.parametrize(
    ("triplet", "references", "message"),
    [
        ((6, 1, 2), None, "indices_tuple: got an index 6, expected 0 to 5"),
        ((0, 6, 2), None, "indices_tuple: got an index 6, expected 0 to 5"),
        ((0, 1, -1), None, "indices_tuple: got an index -1, expected 0 to 5"),
        ((0, 1, 3), 3, "indices_tuple: got an index 3, expected 0 to 2, of the embeddings"),
        ((6, 1, 2), 9, "indices_tuple: got an index 6, expected 0 to 5"),
    ],
)
@pytest.mark.parametrize("repeats", [1, 60], ids=["few", "more than all pairs"])
def test_index_out_of_range_is_refused(loss_func, triplet, references, message, repeats):
    ref_emb = None if references is None else _rows(references, seed=1)
    with pytest.raises(ValueError, match=message):
        loss_func(_rows(6), indices_tuple=_indices(*[triplet] * repeats), ref_emb=ref_emb)


def test_pair_out_of_range_is_refused(loss_func):
    with pytest.raises(ValueError, match="indices_tuple: got an index 7, expected 0 to 5"):
        loss_func(_rows(6), indices_tuple=(*_indices((0, 1)), *_indices((0, 7))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_indices_that_are_no_integers_are_refused(loss_func, dtype):
    with pytest.raises(ValueError, match=f"indices_tuple: got {dtype}, expected integers"):
        loss_func(_rows(6), indices_tuple=_indices((0, 1, 1), dtype=dtype))


def test_largest_indices_are_taken(loss_func):
    assert loss_func(_rows(6), indices_tuple=_indices((5, 5, 5))).isfinite()
    assert loss_func(_rows(6), indices_tuple=_indices((5, 8, 8)), ref_emb=_rows(9, seed=1)).isfinite()


def test_margins_by_the_matrix_and_their_gradients_are_right_for_embeddings_of_any_norm():
    """The loss gives it unit norms, through which no gradient along an embedding comes back."""
    generator = torch.Generator().manual_seed(0)
    query, reference = (
        torch.randn(count, 3, generator=generator, dtype=torch.float64, requires_grad=True)
        for count in (4, 5)
    )
    anchors, positives, negatives = (torch.randint(n, (9,), generator=generator) for n in (4, 5, 5))

    def margins(query, reference):
        return SquaredMargins.apply(query, reference, anchors, positives, negatives)

    near, far = ((query[anchors] - reference[others]).square().sum(1) for others in (positives, negatives))
    torch.testing.assert_close(margins(query, reference), near - far)
    assert torch.autograd.gradcheck(margins, (query, reference))


def test_margins_by_the_matrix_refuse_an_index_before_the_first():
    """The place -1 of the products would be another row's; on an accelerator nobody looks before."""
    triplets = (torch.tensor([1]), torch.tensor([-1]), torch.tensor([0]))
    with pytest.raises((IndexError, RuntimeError), match="index out of range"):
        SquaredMargins.apply(_rows(3), _rows(3), *triplets)
