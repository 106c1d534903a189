"""PDDMLoss, against explicit loops, closed forms and numerical gradients."""

import math

import pytest
import torch
from pytorch_metric_learning import reducers, regularizers

from dr_plugin.losses import PDDMLoss, explicit_triplets, pddm
from dr_plugin.miners import HardQuadrupletMiner

from .pddm_cases import LABELS, make_embeddings, make_loss, make_triplets


def _squared(x, y):
    x, y = ([value / math.sqrt(sum(v * v for v in row)) for value in row] for row in (x.tolist(), y.tolist()))
    return sum((a - b) ** 2 for a, b in zip(x, y, strict=True))


def _by_loops(loss_func, query, reference, triplets):
    """The cost of each triplet; similarities one by one from the unit, which has its own oracle."""
    alpha, beta, weight = (
        loss_func.similarity_margin,
        loss_func.euclidean_margin,
        loss_func.euclidean_weight,
    )
    costs = []
    for a, p, n in zip(*(indices.tolist() for indices in triplets), strict=True):
        near, far = (loss_func.unit(query[a, None], reference[b, None]).item() for b in (p, n))
        learned = max(0.0, alpha + far - near)
        euclidean = max(0.0, beta + _squared(query[a], reference[p]) - _squared(query[a], reference[n]))
        costs.append(learned + weight * euclidean)
    return torch.tensor(costs, dtype=torch.float64)


def _gradients(loss, *leaves):
    return torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("count", [1, 5, 60], ids=["one", "pairs", "more than all pairs"])
@pytest.mark.parametrize("references", [None, 4])
def test_each_cost_is_the_double_hinge(count, references):
    loss_func = make_loss(
        similarity_margin=0.01,
        euclidean_margin=0.1,
        euclidean_weight=0.3,
        reducer=reducers.DoNothingReducer(),
    )
    embeddings = make_embeddings()
    reference = None if references is None else make_embeddings(references, seed=1)
    triplets = make_triplets(count, references=references or 6)
    costs = loss_func(embeddings, indices_tuple=triplets, ref_emb=reference)["loss"]["losses"]
    expected = _by_loops(loss_func, embeddings, embeddings if reference is None else reference, triplets)
    torch.testing.assert_close(costs, expected)
    if count == 60:
        assert (costs == 0).any()
    assert (costs > 0).any()


def _set_to_first_coordinate(unit):
    """S(x, y) = |x - y| / l2 of its first coordinate: 1 where they differ in the first alone, 0 where not in it."""
    with torch.no_grad():
        for weight in unit.parameters():
            weight.zero_()
        unit.difference.weight.copy_(torch.eye(2))
        unit.joint.weight[0, 0] = 1
        unit.similarity.weight[0, 0] = 1


def test_two_classes_of_two_images_are_closed_form():
    # Unit vectors at 0, 90, 180 and 270 degrees; classes {0, 1}, {2, 3}.
    embeddings = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [0.0, -4.0]]).double()
    labels = torch.tensor([0, 0, 1, 1])
    loss_func = make_loss(2, similarity_margin=0.5, euclidean_margin=1.0, euclidean_weight=0.5)
    _set_to_first_coordinate(loss_func.unit)
    half = math.sqrt(0.5)
    # S: neighbours differ in both coordinates alike, 1 / sqrt 2; 0 and 2 in the first alone, 1; 1 and 3 not in it, 0.
    expected = torch.tensor([[0, half, 1, half], [half, 0, half, 0], [1, half, 0, half], [half, 0, half, 0]])
    torch.testing.assert_close(loss_func.unit.matrix(embeddings), expected.double())
    # Both positive pairs have S = half: (0, 1) is first. 0's most similar negative is 2 (S = 1), 1's is 2 (S = half).
    triplets = HardQuadrupletMiner(loss_func.unit)(embeddings, labels)
    assert [indices.tolist() for indices in triplets] == [[0, 1], [1, 0], [2, 2]]
    # E_m = [.5 + 1 - half]+ + [.5 + half - half]+; D(0,1) = 2, D(0,2) = 4, D(1,2) = 2: E_e = [1+2-4]+ + [1+2-2]+.
    energy = (1.5 - half) + 0.5 + 0.5 * (0 + 1)
    assert loss_func(embeddings, labels, triplets).item() == pytest.approx(energy)
    assert loss_func(embeddings, labels).item() == pytest.approx(energy)  # mined by the loss itself
    # Twice the same quadruplet costs the same by default, twice as much as a sum, half as a mean of triplets.
    twice = tuple(indices.repeat(2) for indices in triplets)
    assert loss_func(embeddings, labels, twice).item() == pytest.approx(energy)
    for reducer, factor in ((reducers.SumReducer(), 2), (reducers.MeanReducer(), 0.5)):
        other = make_loss(2, reducer=reducer)
        _set_to_first_coordinate(other.unit)
        assert other(embeddings, labels, twice).item() == pytest.approx(factor * energy)


@pytest.mark.parametrize("count", [5, 60])
@pytest.mark.parametrize("own", [True, False])
def test_gradient_is_that_of_finite_differences(count, own):
    loss_func = make_loss(3, similarity_margin=9.0, euclidean_margin=9.0)  # away from the kink
    embeddings, reference = make_embeddings(4, 3), make_embeddings(4, 3, seed=1)
    triplets = make_triplets(count, 4, 4)

    def loss(*_):
        return loss_func(embeddings, indices_tuple=triplets, ref_emb=None if own else reference)

    leaves = (embeddings,) if own else (embeddings, reference)
    assert torch.autograd.gradcheck(loss, (*leaves, *loss_func.parameters()))


def test_references_that_are_the_batch_change_nothing():
    loss_func, embeddings = make_loss(), make_embeddings()
    expected = loss_func(embeddings, LABELS)
    gradients = _gradients(expected, embeddings, *loss_func.parameters())
    loss = loss_func(embeddings, LABELS, ref_emb=embeddings, ref_labels=LABELS)
    assert loss.item() == expected.item()
    for ours, other in zip(_gradients(loss, embeddings, *loss_func.parameters()), gradients, strict=True):
        torch.testing.assert_close(ours, other)
    assert loss_func(embeddings, LABELS, ref_emb=embeddings.detach(), ref_labels=LABELS).item() == loss.item()


def test_without_indices_the_hard_quadruplet_is_mined():
    loss_func = make_loss(similarity_margin=2.0)
    for seed in range(5):
        embeddings = make_embeddings(seed=seed)
        triplets = HardQuadrupletMiner(loss_func.unit)(embeddings, LABELS)
        assert loss_func(embeddings, LABELS).item() == loss_func(embeddings, LABELS, triplets).item() > 0


def test_without_indices_references_are_mined():
    loss_func, embeddings, reference = make_loss(), make_embeddings(2), make_embeddings(5, seed=1)
    labels, ref_labels = torch.tensor([0, 1]), torch.tensor([0, 1, 0, 1, 2])
    triplets = HardQuadrupletMiner(loss_func.unit)(embeddings, labels, reference, ref_labels)
    assert len(triplets[0]) == 1
    expected = loss_func(embeddings, labels, triplets, reference, ref_labels)
    assert loss_func(embeddings, labels, ref_emb=reference, ref_labels=ref_labels).item() == expected.item()


def test_copy_of_an_image_among_the_references_is_not_its_positive():
    """S(x, x) is as any S: of random units about one in five has it lowest."""
    embeddings, itself = make_embeddings(), 0
    for seed in range(30):
        loss_func = make_loss(seed=seed, reducer=reducers.DoNothingReducer())
        terms = loss_func(embeddings, LABELS, ref_emb=embeddings.clone(), ref_labels=LABELS)["loss"]
        anchors, positives, negatives = terms["indices"]
        matrix = loss_func.unit.matrix(embeddings).masked_fill(LABELS[:, None] != LABELS, torch.inf)
        itself += int(matrix[:5].argmin()) % 7 == 0  # on the diagonal; image 5 is alone in its class
        lowest = matrix.fill_diagonal_(torch.inf).min()
        assert len(anchors) == 1
        torch.testing.assert_close(matrix[anchors, positives], lowest.unsqueeze(0))
        assert LABELS[negatives] != LABELS[anchors]
    assert itself > 2


def test_pairs_are_joined_on_the_anchor_as_in_pml():
    loss_func, embeddings = make_loss(), make_embeddings()
    pairs = tuple(torch.tensor(indices) for indices in ([0, 0, 1], [1, 2, 3], [0, 1, 0], [4, 5, 5]))
    joined = tuple(torch.tensor(indices) for indices in ([0, 0, 0, 0, 1], [1, 1, 2, 2, 3], [4, 5, 4, 5, 5]))
    loss = loss_func(embeddings, indices_tuple=pairs)
    torch.testing.assert_close(loss, loss_func(embeddings, indices_tuple=joined))


@pytest.mark.parametrize(
    ("labels", "indices_tuple", "regularizer"),
    [
        ([0, 1, 2, 3], None, None),
        ([0, 1, 2, 3], None, regularizers.ZeroMeanRegularizer()),
        ([0, 0, 0, 0], None, None),
        ([0, 0, 1, 1], (torch.zeros(0).long(),) * 3, None),
        ([0, 0, 1, 1], (torch.zeros(0).long(),) * 4, None),
        ([], None, None),
    ],
    ids=["no positive pair", "regularised", "one class", "no triplets", "no pairs", "no images"],
)
def test_no_triplets_cost_0_attached_to_embeddings_and_unit(labels, indices_tuple, regularizer):
    embeddings = make_embeddings(len(labels))
    loss_func = make_loss(embedding_regularizer=regularizer, embedding_reg_weight=0)
    loss = loss_func(embeddings, torch.tensor(labels).long(), indices_tuple)
    assert loss.item() == 0
    loss.backward()
    for leaf in (embeddings, *loss_func.unit.parameters()):
        assert leaf.grad is not None
        assert not leaf.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("regularizer", [None, regularizers.LpRegularizer()], ids=["plain", "regularised"])
def test_half_precision_embeddings_are_computed_in_float32(dtype, regularizer):
    loss_func = make_loss(dtype=torch.float32, embedding_regularizer=regularizer)
    embeddings = make_embeddings(dtype=dtype).detach().requires_grad_()
    expected = loss_func(embeddings.float(), LABELS)
    for reference in (None, embeddings, embeddings.detach()):
        ref_labels = None if reference is None else LABELS
        loss = loss_func(embeddings, LABELS, ref_emb=reference, ref_labels=ref_labels)
        assert loss.dtype == torch.float32
        assert loss.item() == expected.item()
    loss.backward()
    assert embeddings.grad.dtype == dtype


def test_autocast_changes_nothing():
    loss_func, embeddings = make_loss(dtype=torch.float32), make_embeddings(dtype=torch.float32)
    leaves = (embeddings, *loss_func.parameters())
    expected = loss_func(embeddings, LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_func(embeddings, LABELS)
    assert torch.equal(loss, expected)
    for first, second in zip(_gradients(loss, *leaves), _gradients(expected, *leaves), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize(("count", "most"), [(2, 4), (10, 20), (11, 36), (100, 36)])
def test_only_the_pairs_of_the_triplets_are_compared(count, most, monkeypatch):
    compared = []
    original = pddm.PDDMUnit.__dict__["pairs"]
    matrix = pddm.PDDMUnit.__dict__["matrix"]
    monkeypatch.setattr(
        pddm.PDDMUnit, "pairs", lambda unit, x, y, i, j: compared.append(len(i)) or original(unit, x, y, i, j)
    )
    monkeypatch.setattr(
        pddm.PDDMUnit, "matrix", lambda unit, x, y=None: compared.append(len(x) ** 2) or matrix(unit, x, y)
    )
    make_loss()(make_embeddings(), LABELS, make_triplets(count))
    assert compared == [most]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embedding_size": 0}, "embedding_size: got 0, expected a whole number, at least 1"),
        ({"similarity_margin": 0}, "similarity_margin: got 0, expected a finite number above 0"),
        ({"similarity_margin": math.inf}, "similarity_margin: got inf, expected a finite number above 0"),
        ({"similarity_margin": True}, "similarity_margin: got True, expected a finite number above 0"),
        ({"euclidean_margin": -1.0}, "euclidean_margin: got -1.0, expected a finite number above 0"),
        ({"euclidean_margin": "1"}, "euclidean_margin: got '1', expected a finite number above 0"),
        ({"euclidean_weight": -0.1}, "euclidean_weight: got -0.1, expected a finite number at least 0"),
        ({"euclidean_weight": math.nan}, "euclidean_weight: got nan, expected a finite number at least 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PDDMLoss(**{"embedding_size": 5, **arguments})


def test_weight_0_leaves_the_similarities_alone():
    loss_func, embeddings = make_loss(euclidean_weight=0, similarity_margin=2.0), make_embeddings()
    triplets = HardQuadrupletMiner(loss_func.unit)(embeddings, LABELS)
    near, far = (loss_func.unit(embeddings[triplets[0]], embeddings[others]) for others in triplets[1:])
    torch.testing.assert_close(loss_func(embeddings, LABELS), (2 + far - near).sum())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": None}, "labels: got none, and no indices_tuple"),
        ({"ref_emb": make_embeddings(3)}, "ref_labels: got none, and no indices_tuple"),
        ({"indices_tuple": make_triplets()[:2]}, r"indices_tuple: got lengths \[5, 5\], expected 3"),
        ({"indices_tuple": (torch.zeros(2**16).long(),) * 4}, "got pairs, .* 4,294,967,296 combinations"),
        (
            {"embeddings": make_embeddings(6, 8)},
            r"embeddings: got embeddings of shape \(6, 8\), expected \(N, 5\)",
        ),
        ({"embeddings": make_embeddings(6, 8), "indices_tuple": make_triplets()}, r"embeddings: .* \(6, 8\)"),
        (
            {"ref_emb": make_embeddings(6, 4), "ref_labels": LABELS},
            r"ref_emb: .* \(6, 4\), expected \(N, 5\)",
        ),
        ({"ref_emb": make_embeddings(6, 4), "indices_tuple": make_triplets()}, r"ref_emb: .* \(6, 4\)"),
        ({"labels": LABELS[:5]}, "must equal number of labels"),
        ({"labels": LABELS.double()}, "labels: got torch.float64, expected integer classes"),
        (
            {"ref_emb": make_embeddings(3), "ref_labels": torch.zeros(3)},
            "ref_labels: got torch.float32, expected integer classes",
        ),
        ({"ref_emb": make_embeddings(3), "ref_labels": LABELS}, "must equal number of labels"),
        ({"indices_tuple": make_triplets(5, 6, 7)}, "indices_tuple: got an index 6, expected 0 to 5"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_loss()(**{"embeddings": make_embeddings(), "labels": LABELS, **arguments})


def test_many_triplets_are_taken_in_tiles(monkeypatch):
    loss_func, embeddings, triplets = make_loss(), make_embeddings(20), make_triplets(150, 20, 20)
    leaves = (embeddings, *loss_func.parameters())
    expected = loss_func(embeddings, indices_tuple=triplets)
    gradients = _gradients(expected, *leaves)
    monkeypatch.setattr(pddm.PDDMUnit, "_tile_pairs", lambda unit, device: 7)
    monkeypatch.setattr(explicit_triplets, "_CHUNK_ELEMENTS", 35)
    loss = loss_func(embeddings, indices_tuple=triplets)
    torch.testing.assert_close(loss, expected)
    for first, second in zip(_gradients(loss, *leaves), gradients, strict=True):
        torch.testing.assert_close(first, second)
