"""PDDMUnit, against explicit loops, closed forms and numerical gradients."""

import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dr_plugin.losses import PDDMUnit, pddm_unit


def _unit(size=5, seed=0, dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return PDDMUnit(size).to(dtype)


def _embeddings(count=6, size=5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, generator=generator, dtype=torch.float64).to(dtype)


def _unit_norm(vector):
    norm = math.sqrt(sum(value**2 for value in vector))
    return [value / norm if norm else 0.0 for value in vector]


def _layer(linear, vector):
    rows = zip(linear.weight.tolist(), linear.bias.tolist(), strict=True)
    return [bias + sum(w * value for w, value in zip(row, vector, strict=True)) for row, bias in rows]


def _relu(vector):
    return [max(0.0, value) for value in vector]


def _by_loops(unit, x, y):
    """S of two embeddings, number by number, as the equations say."""
    x, y = _unit_norm(x.tolist()), _unit_norm(y.tolist())
    u = [abs(a - b) for a, b in zip(x, y, strict=True)]
    v = [(a + b) / 2 for a, b in zip(x, y, strict=True)]
    u, v = _unit_norm(_relu(_layer(unit.difference, u))), _unit_norm(_relu(_layer(unit.position, v)))
    return _layer(unit.similarity, _relu(_layer(unit.joint, u + v)))[0]


def _matrix_by_loops(unit, x, y):
    return torch.tensor([[_by_loops(unit, a, b) for b in y] for a in x], dtype=torch.float64)


@pytest.fixture(params=[1 << 19, 21, 1], ids=["one tile", "tiles of 7 pairs", "tiles of 1 pair"])
def _tiles(request, monkeypatch):
    monkeypatch.setattr(pddm_unit, "_TILE_ELEMENTS", request.param)


@pytest.mark.usefixtures("_tiles")
@pytest.mark.parametrize("references", [None, 5, 1])
def test_every_way_gives_what_the_equations_say(references):
    unit, x = _unit(3), _embeddings(4, 3)
    y = x if references is None else _embeddings(references, 3, seed=1)
    expected = _matrix_by_loops(unit, x, y)
    torch.testing.assert_close(unit.matrix(x, None if references is None else y), expected)
    i, j = torch.arange(4).repeat_interleave(len(y)), torch.arange(len(y)).repeat(4)
    torch.testing.assert_close(unit(x[i], y[j]), expected.flatten())
    torch.testing.assert_close(unit.pairs(x, y, i, j), expected.flatten())
    candidates = torch.randint(len(y), (4, 6), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(unit.candidates(x, y, candidates), expected.gather(1, candidates))


def test_similarity_of_right_angles_is_closed_form():
    unit = _unit(2)
    with torch.no_grad():
        for linear in (unit.difference, unit.position):
            linear.weight.copy_(torch.eye(2))
            linear.bias.zero_()
        # The first of u', twice v's second.
        unit.joint.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 2.0]]))
        unit.joint.bias.copy_(torch.tensor([0.25, 0]))
        unit.similarity.weight.copy_(torch.tensor([[-1.0, 1.0]]))
        unit.similarity.bias.fill_(3)
    x, y = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([[0.0, 5.0]]).double()
    # u = (1, 1), u' = (1, 1) / sqrt 2; v = (1, 1) / 2, v' = u'
    assert unit(x, y).item() == pytest.approx(3 - (math.sqrt(0.5) + 0.25) + 2 * math.sqrt(0.5))
    # with itself: u' = 0, v' = (1, 0)
    assert unit(x, x).item() == pytest.approx(3 - 0.25)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
def test_similarity_is_symmetric_and_of_direction_only(seed, dtype):
    unit, x = _unit(seed=seed, dtype=torch.float32), _embeddings(4, seed=seed, dtype=dtype)
    matrix = unit.matrix(x)
    assert torch.equal(matrix, matrix.T)
    assert torch.equal(unit(x[:2], x[2:]), unit(x[2:], x[:2]))
    torch.testing.assert_close(unit.matrix(4 * x), matrix)


@pytest.mark.parametrize("elements", [1 << 19, 6], ids=["one tile", "tiles of 3 pairs"])
@pytest.mark.parametrize("references", [None, 3])
def test_gradients_are_those_of_finite_differences(references, elements, monkeypatch):
    monkeypatch.setattr(pddm_unit, "_TILE_ELEMENTS", elements)
    unit, x = _unit(2), _embeddings(4, 2).requires_grad_()
    y = x if references is None else _embeddings(references, 2, seed=1).requires_grad_()
    i, j = torch.tensor([0, 1, 2, 2]), torch.tensor([2, 2, 0, 1])

    def similarities(*_):
        return torch.cat([unit.matrix(x, None if y is x else y).flatten(), unit.pairs(x, y, i, j)])

    leaves = (x, *unit.parameters()) if y is x else (x, y, *unit.parameters())
    assert torch.autograd.gradcheck(similarities, leaves)


def test_gradients_in_tiles_are_those_in_one():
    gradients = []
    for elements in (1 << 19, 64):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pddm_unit, "_TILE_ELEMENTS", elements)
            unit, x = _unit(), _embeddings(20).requires_grad_()
            loss = unit.matrix(x).sin().sum() + unit.matrix(x, x[3:]).cos().sum()
            gradients.append(torch.autograd.grad(loss, (x, *unit.parameters())))
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)


def _kept(count):
    """Numbers that the graph of the matrix of `count` embeddings holds."""
    sizes = []
    x, unit = _embeddings(count, 16).requires_grad_(), _unit(16)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda kept: sizes.append(kept.numel()) or kept, lambda kept: kept
    ):
        unit.matrix(x)
    return sum(sizes)


def test_tiles_are_computed_again_rather_than_kept(monkeypatch):
    whole = _kept(40)  # one tile, which is kept
    monkeypatch.setattr(pddm_unit, "_TILE_ELEMENTS", 16 * 50)
    assert whole > 40 * 40 * 16  # at least one number for each pair and dimension
    assert _kept(40) < whole / 4


def test_tiles_are_larger_on_an_accelerator():
    unit = _unit(8)
    assert unit._tile_pairs(torch.device("cpu")) == 2**18 // 8
    assert unit._tile_pairs(torch.device("cuda")) == 2**24 // 8


def test_every_pair_of_a_batch_is_computed_once(monkeypatch):
    monkeypatch.setattr(pddm_unit, "_TILE_ELEMENTS", 5 * 12)  # 12 pairs a tile: a row, then more
    pairs = []
    original = pddm_unit._Weights.similarities
    monkeypatch.setattr(
        pddm_unit._Weights,
        "similarities",
        lambda weights, difference, placed: (
            pairs.append(len(difference)) or original(weights, difference, placed)
        ),
    )
    _unit().matrix(_embeddings(12))
    assert max(pairs) <= 12
    assert 12 * 13 / 2 <= sum(pairs) < 1.3 * 12 * 13 / 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_embeddings_are_computed_in_float32(dtype):
    unit, x = _unit(dtype=torch.float32), _embeddings(dtype=dtype).requires_grad_()
    expected = unit.matrix(x.float())
    matrix = unit.matrix(x)
    assert matrix.dtype == torch.float32
    assert torch.equal(matrix, expected)
    matrix.sum().backward()
    assert x.grad.dtype == dtype


@pytest.mark.parametrize(
    ("embeddings", "weights", "expected"),
    [
        (torch.float64, torch.float32, torch.float64),
        (torch.float32, torch.float64, torch.float64),
        (torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.float16, torch.bfloat16, torch.float32),
    ],
)
def test_wider_of_embeddings_and_weights_is_kept(embeddings, weights, expected):
    unit, x = _unit(dtype=weights), _embeddings(dtype=embeddings)
    wide = _unit(dtype=weights).to(expected)  # the weights' values as rounded
    assert (
        unit.matrix(x).dtype
        == unit(x, x).dtype
        == unit.matrix(x[:0]).dtype
        == unit(x[:0], x[:0]).dtype
        == expected
    )
    assert torch.equal(unit.matrix(x), wide.matrix(x.to(expected)))


@pytest.mark.usefixtures("_tiles")
def test_autocast_changes_nothing():
    unit, x = _unit(dtype=torch.float32), _embeddings(dtype=torch.float32).requires_grad_()

    def results(autocast):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            values = unit.matrix(x), unit(x[:3], x[3:]), unit.candidates(x, x, torch.zeros(6, 1).long())
        return [*values, *torch.autograd.grad(sum(value.sum() for value in values), (x, *unit.parameters()))]

    assert all(torch.equal(a, b) for a, b in zip(results(True), results(False), strict=True))


@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (0, 3), (3, 0)])
def test_nothing_has_no_similarities(rows, columns):
    unit, x, y = _unit(), _embeddings(rows).requires_grad_(), _embeddings(columns)
    assert unit.matrix(x, y).shape == (rows, columns)
    assert unit.matrix(x[:0]).shape == (0, 0)
    none = torch.zeros(0).long()
    assert unit.pairs(x, y, none, none).shape == (0,)
    unit.pairs(x, x, none, none).sum().backward()
    assert unit.candidates(x, y, torch.zeros(rows, 0).long()).shape == (rows, 0)


def test_gradient_is_finite_where_embeddings_coincide_or_are_zero():
    unit, x = _unit(), torch.ones(3, 5).double()
    x[2] = 0
    x.requires_grad_()
    unit.matrix(x).sum().backward()
    assert x.grad.isfinite().all()
    assert all(weight.grad.isfinite().all() for weight in unit.parameters())


def test_weights_come_back_from_the_state_dict():
    unit, x = _unit(), _embeddings()
    file = io.BytesIO()
    torch.save(unit.state_dict(), file)
    file.seek(0)
    other = _unit(seed=1)
    assert not torch.equal(other.matrix(x), unit.matrix(x))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.matrix(x), unit.matrix(x))
    assert sorted(tuple(weight.shape) for weight in unit.parameters()) == sorted(
        [(5, 5), (5,), (5, 5), (5,), (5, 10), (5,), (1, 5), (1,)]
    )


@pytest.mark.parametrize("size", [0, -1, 2.0, True, None])
def test_embedding_size_out_of_range_is_refused(size):
    with pytest.raises(ValueError, match=r"embedding_size: got .*, expected a whole number, at least 1"):
        PDDMUnit(size)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda unit, x: unit(x, x[:, :3]), r"y: got embeddings of shape \(6, 3\), expected \(N, 5\)"),
        (lambda unit, x: unit.matrix(x[:, :3]), r"x: got embeddings of shape \(6, 3\), expected \(N, 5\)"),
        (lambda unit, x: unit.matrix(x[0]), r"x: got embeddings of shape \(5,\), expected \(N, 5\)"),
        (lambda unit, x: unit(x, x[:4]), r"y: got 4 rows, expected 6, as x; for all pairs use matrix"),
        (
            lambda unit, x: unit.candidates(x, x, torch.zeros(5, 2).long()),
            r"indices: got \(5, 2\), expected \(6, K\)",
        ),
        (
            lambda unit, x: unit.candidates(x, x, torch.full((6, 2), -1)),
            "indices: got -1 to -1, expected .* 6 rows",
        ),
        (
            lambda unit, x: unit.candidates(x, x, torch.full((6, 2), 6)),
            "indices: got 6 to 6, expected .* 6 rows",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(_unit(), _embeddings())
