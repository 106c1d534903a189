import doctest
import sys

import numpy as np
import pytest
from scipy.optimize import OptimizeResult, nnls

from dr_plugin.relevance import max_margin as module
from dr_plugin.relevance.max_margin import NothingSeparatesError, max_margin


def objective(weights, nearer, penalty):
    loss = 0.0
    for triplet in nearer:
        slack = 1 - sum(weight * value for weight, value in zip(weights, triplet, strict=True))
        loss += max(0.0, slack) ** 2
    return loss / len(nearer) + penalty * sum(weight**2 for weight in weights)


@pytest.mark.parametrize("penalty", [1e-3, 0.1, 10.0])
def test_closed_form_of_one_similarity_and_one_triplet(penalty):
    # (1 - 2 w)^2 + penalty w^2 is least at w = 2 / (4 + penalty), where the hinge is open
    assert max_margin(np.array([[2.0]]), penalty) == pytest.approx([2 / (4 + penalty)], rel=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_no_neighbour_is_better(seed):
    rng = np.random.default_rng(seed)
    nearer = rng.normal([1.0, 0.3, -0.2], [1.0, 1.0, 0.5], (60, 3))
    weights = max_margin(nearer, 0.01)
    assert (weights >= 0).all()
    best = objective(weights, nearer, 0.01)
    for step in rng.normal(0, 0.02, (100, 3)):
        assert objective(np.maximum(0, weights + step), nearer, 0.01) >= best - 1e-9


def test_where_every_hinge_is_open_it_is_non_negative_least_squares():
    nearer = np.random.default_rng(0).uniform(-0.1, 0.2, (50, 4))
    penalty = 0.5  # keeps w.x below 1
    rows = np.concatenate([nearer / np.sqrt(len(nearer)), np.sqrt(penalty) * np.eye(4)])
    expected, _ = nnls(rows, np.concatenate([np.full(50, 1 / np.sqrt(50)), np.zeros(4)]))
    weights = max_margin(nearer, penalty)
    assert (nearer @ weights < 1).all()
    np.testing.assert_allclose(weights, expected, atol=1e-5)


def test_what_separates_gets_the_weight_and_noise_nearly_none():
    rng = np.random.default_rng(1)
    nearer = np.stack(
        [rng.normal(1.5, 0.5, 20_000), rng.normal(0, 1, 20_000), rng.normal(-1, 1, 20_000)], axis=1
    )
    weights = max_margin(nearer, 1e-3)
    assert weights[1] / weights[0] < 0.02
    assert weights[2] / weights[0] < 0.02


def test_of_two_copies_each_gets_half():
    nearer = np.random.default_rng(2).normal(1, 1, (200, 1))
    weights = max_margin(np.repeat(nearer, 2, axis=1), 0.01)
    assert weights[0] == pytest.approx(weights[1])
    assert weights.sum() == pytest.approx(max_margin(nearer, 0.005)[0], rel=1e-4)


def test_float32_and_scale_of_values_do_not_matter_to_the_order():
    nearer = np.random.default_rng(3).normal([1.0, 0.5], 1, (500, 2))
    wide, narrow = max_margin(nearer, 1e-6), max_margin((1e3 * nearer).astype(np.float32), 1e-6)
    np.testing.assert_allclose(narrow * 1e3, wide, rtol=1e-3)


def test_nothing_that_separates_is_refused():
    with pytest.raises(
        NothingSeparatesError, match="no similarity that is larger for positives than for negatives"
    ):
        max_margin(np.array([[-1.0, 0.0], [-0.5, -0.1]]), 0.1)


def test_a_minimum_that_is_not_found_is_told_by_the_functions_own_argument(monkeypatch):
    stopped = OptimizeResult(x=np.array([9.0]), message="stopped")
    monkeypatch.setattr(module, "minimize", lambda *arguments, **options: stopped)
    with pytest.raises(RuntimeError, match=r"with penalty=0\.1 \(stopped\): a larger one helps"):
        max_margin(np.array([[1.0]]), 0.1)


def test_example_runs():
    results = doctest.testmod(sys.modules[max_margin.__module__])
    assert results.attempted > 0
    assert results.failed == 0
