"""The claim of LRML on the documentation's toy problem: negatives end at distances that differ by their rank."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def toy():
    specification = importlib.util.spec_from_file_location("lrml_toy", DOCS / "lrml_toy.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def courses(toy):
    """The picture's rows: distances before each step and at the end, for each loss."""
    return toy.courses()


@pytest.fixture
def ends(courses):
    return {name: course[-1] for name, course in courses["negatives of its own"].items()}


def _off(distances, expected):
    return (distances - torch.as_tensor(expected)).abs().max().item()


@pytest.mark.parametrize("name", ["LRMLLoss", "LRMLLoss, two-sided"])
def test_lrml_leaves_each_negative_at_the_margin_of_its_rank(ends, name):
    assert _off(ends[name][:, 1:], [0.8, 0.9, 1.0, 1.1, 1.2]) < 0.02
    assert _off(ends[name][:, 0].clamp(min=0.4), 0.4) < 0.02


def test_contrastive_loss_leaves_all_negatives_at_its_margin(ends):
    assert _off(ends["ContrastiveLoss (PML)"][:, 1:], 1.0) < 0.02


def test_triplet_loss_leaves_all_negatives_at_its_margin_beyond_the_positive(ends):
    distances = ends["TripletMarginLoss (PML)"]
    assert _off(distances[:, 1:] - distances[:, :1], 1.0) < 0.05


def test_all_start_from_the_same_spread_of_distances(courses):
    for row in courses.values():
        first, *others = (course[0] for course in row.values())
        assert all(torch.equal(first, other) for other in others)
    first = courses["negatives of its own"]["LRMLLoss"][0]
    assert 0.29 < first.min() < 0.35
    assert 0.65 < first.max() < 0.71


def test_distances_by_rank_differ_also_where_the_query_moves(toy):
    spread = {}
    for name, loss_func in toy.OWN.items():
        by_rank = toy.train(loss_func, steps=120, rate=3.0, still=False)[-1, :, 1:].mean(0)
        spread[name] = (by_rank[-1] - by_rank[0]).item()
    del spread["LRMLLoss, two-sided"]
    assert spread.pop("LRMLLoss") > 3 * max(spread.values())


def _spreads(toy, seeds, **start):
    """From the nearest to the fifth nearest class at the end of ordinary batches, mean over seeds."""
    spreads = {}
    for name, loss_func in toy.SHARED.items():
        ends = torch.stack(
            [toy.train_shared(loss_func, seed=seed, **start)[-1].mean(0) for seed in range(seeds)]
        )
        spreads[name] = (ends[:, -1] - ends[:, 1]).mean().item()
    return spreads


def test_ordinary_batches_leave_nearest_classes_further_apart_than_pml_s_losses(toy):
    spreads = _spreads(toy, 2)
    assert spreads["LRMLLoss"] > 1.3 * spreads["ContrastiveLoss (PML)"]
    assert spreads["LRMLLoss"] > 1.2 * spreads["TripletMarginLoss (PML)"]
    assert spreads["LRMLLoss, two-sided"] > 1.2 * spreads["LRMLLoss"]
    # Of images, not of classes, ranks do not.
    by_image = toy.train_shared(toy.LRMLLoss(per_class=False))[-1].mean(0)
    assert by_image[-1] - by_image[1] < 1.3 * spreads["ContrastiveLoss (PML)"]


def test_classes_that_start_beyond_the_margins_end_about_as_with_pml_s_losses(toy):
    spreads = _spreads(toy, 1, near=0.0)
    assert spreads["LRMLLoss"] < 1.5 * spreads["ContrastiveLoss (PML)"]


def test_two_sided_ends_at_the_margins_in_ordinary_batches_and_the_hinge_does_not(courses):
    row = {name: course[-1, :, 1:].mean(0) for name, course in courses["ordinary batches"].items()}
    assert _off(row["LRMLLoss, two-sided"], [0.8, 0.9, 1.0, 1.1, 1.2]) < 0.05
    assert _off(row["LRMLLoss"], [0.8, 0.9, 1.0, 1.1, 1.2]) > 0.1


def test_distances_to_classes_are_those_of_loops(toy):
    embeddings = toy.shared_start()
    distances = toy._to_classes(embeddings)
    for row, (label, image) in ((0, (0, 0)), (21, (2, 5)), (95, (11, 7))):
        to = (embeddings - embeddings[label, image]).norm(dim=2)
        others = sorted(to[other].min().item() for other in range(toy.CLASSES) if other != label)
        expected = [to[label].max().item(), *others[: toy.NEGATIVES]]
        assert distances[row].tolist() == pytest.approx(expected, abs=1e-3)


def test_picture_is_drawn_and_small(toy, courses, tmp_path):
    toy.draw(courses, tmp_path / "toy.png")
    assert 10_000 < (tmp_path / "toy.png").stat().st_size < 80_000


def test_picture_of_the_docs_shows_what_the_losses_do_now(toy, courses):
    with Image.open(DOCS / "images" / "lrml-toy.png") as picture:
        shown = json.loads(picture.info["ends"])
    now = toy.ends(courses)
    assert shown.keys() == now.keys()
    for name, distances in now.items():
        assert shown[name] == pytest.approx(distances, abs=0.03), (
            f"{name}: draw docs/images/lrml-toy.png anew"
        )
