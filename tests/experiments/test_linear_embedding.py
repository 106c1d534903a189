"""The linear embedding: its steps against autograd-free loops, what it learns, and what it refuses."""

import doctest
import pickle
import sys

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from dr_plugin.experiments.linear_embedding import LinearEmbedding, normalized_blocks
from dr_plugin.samplers import ReservoirTripletSampler, UniformTripletSampler

LABELS = np.repeat(np.arange(6), 10)
SMALL = {"size": 4, "steps": 20, "batch_size": 12}


def two_blocks(labels=LABELS, seed=0):
    """A block that tells classes, and one of noise, side by side."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(1).normal(size=(labels.max() + 1, 6))
    return normalized_blocks(
        [centres[labels] + 0.7 * rng.normal(size=(len(labels), 6)), rng.normal(size=(len(labels), 6))]
    )


def precision(embeddings, gallery, labels=LABELS, gallery_labels=LABELS, k=5):
    distances = ((embeddings[:, None].astype(float) - gallery) ** 2).sum(axis=2)
    return (gallery_labels[np.argsort(distances, axis=1)[:, :k]] == labels[:, None]).mean()


def test_blocks_are_side_by_side_and_of_unit_rows():
    first, second = np.array([[3, 4], [0, 0]]), np.array([[0.5], [-2.0]], np.float16)
    found = normalized_blocks([first, second])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[0.6, 0.8, 1], [0, 0, -1]])


@pytest.mark.parametrize(
    ("blocks", "match"),
    [
        ([], r"blocks: got \[\]"),
        ([np.ones((2, 3)), np.ones((3, 3))], r"blocks: got \[\(2, 3\), \(3, 3\)\]"),
        ([np.ones((2, 3)), np.ones(2)], r"block 1: got float64 of shape \(2,\)"),
        ([np.full((2, 3), np.nan)], "block 0: row 0: got nan"),
    ],
)
def test_bad_blocks_are_refused(blocks, match):
    with pytest.raises(ValueError, match=match):
        normalized_blocks(blocks)


def by_loops(features, batches, start, rate, momentum, decay, gap):
    """Each triplet's gradient written out; Nesterov's momentum as torch has it, rates along a cosine."""
    weights, velocity, losses = start.astype(float), np.zeros(start.shape), []
    for step, batch in enumerate(batches):
        gradient, costs = np.zeros_like(weights), []
        for q, p, n in zip(batch[::3], batch[1::3], batch[2::3], strict=True):
            x = features[[q, p, n]].astype(float)
            raw = x @ weights.T
            length = np.linalg.norm(raw, axis=1)
            y = raw / length[:, None]
            cost = gap + ((y[0] - y[1]) ** 2).sum() - ((y[0] - y[2]) ** 2).sum()
            if cost <= 0:
                continue
            costs.append(cost)
            towards = 2 * (y[2] - y[1]), 2 * (y[1] - y[0]), 2 * (y[0] - y[2])  # of y_q, y_p, y_n
            for row in range(3):
                onto = towards[row] - (towards[row] @ y[row]) * y[row]
                gradient += np.outer(onto / length[row], x[row])
        gradient = gradient / max(1, len(costs)) + decay * weights
        velocity = gradient if step == 0 else momentum * velocity + gradient
        now = rate * (1 + np.cos(np.pi * step / len(batches))) / 2
        weights -= now * (gradient + momentum * velocity)
        losses.append(sum(costs) / max(1, len(costs)))
    return weights, losses


def test_training_against_loops():
    features = two_blocks()
    arguments = {**SMALL, "learning_rate": 0.3, "momentum": 0.8, "weight_decay": 0.01, "gap": 0.4, "seed": 5}
    embedding = LinearEmbedding(**arguments).fit(features, LABELS)
    start = torch.empty(4, 12)
    torch.nn.init.orthogonal_(start, generator=torch.Generator().manual_seed(5))
    batches = list(UniformTripletSampler(LABELS, batch_size=12, batches_per_epoch=20, seed=5))
    weights, losses = by_loops(features, batches, start.numpy(), 0.3, 0.8, 0.01, 0.4)
    np.testing.assert_allclose(embedding.weights_, weights, atol=1e-4)
    np.testing.assert_allclose(embedding.losses_, losses, atol=1e-4)
    expected = features @ weights.T
    np.testing.assert_allclose(
        embedding.transform(features), expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-4
    )


def relevances():
    table = np.random.default_rng(0).uniform(0.1, 1, (60, 60)).astype(np.float32)
    table = (table + table.T) / 2
    table[LABELS[:, None] != LABELS] = 0
    return table


@pytest.mark.parametrize("labels", [LABELS, None], ids=["classes", "graded"])
def test_with_a_relevance_its_triplets_are_trained_on(labels):
    features = two_blocks()
    draw = {"out_of_class_ratio": 0.5, "relevance_margin": 0.05, "relevance_threshold": 0.9}
    arguments = {"steps": 10, "batch_size": 9, "size": 4, "learning_rate": 0.3}
    embedding = LinearEmbedding(**arguments, **draw).fit(features, labels, relevance=relevances())
    sampler = ReservoirTripletSampler(
        labels, relevances(), batch_size=9, batches_per_epoch=10, seed=0, **draw
    )
    start = torch.empty(4, 12)
    torch.nn.init.orthogonal_(start, generator=torch.Generator().manual_seed(0))
    weights, _ = by_loops(features, list(sampler), start.numpy(), 0.3, 0.9, 1e-4, 0.2)
    np.testing.assert_allclose(embedding.weights_, weights, atol=1e-4)


@pytest.mark.parametrize(
    ("data", "seen"),
    [
        ({"labels": LABELS}, "class labels"),
        ({"relevance": relevances()}, "unrated relevance"),
        ({"labels": LABELS, "relevance": relevances()}, "class labels; unrated relevance"),
    ],
)
def test_it_says_what_it_has_seen(data, seen):
    embedding = LinearEmbedding(**SMALL)
    assert not hasattr(embedding, "seen")
    assert pickle.loads(pickle.dumps(embedding.fit(two_blocks(), **data))).seen == seen


def test_a_capacity_streams():
    embedding = LinearEmbedding(**SMALL, capacity=4).fit(two_blocks(), LABELS, relevance=relevances())
    assert np.isfinite(embedding.weights_).all()


def test_a_block_of_noise_is_ignored():
    train, test = two_blocks(), two_blocks(seed=7)
    embedding = LinearEmbedding(size=12, steps=300, batch_size=60).fit(train, LABELS)
    plain = precision(test, train)
    assert precision(embedding.transform(test), embedding.transform(train)) > plain + 0.05
    signal, noise = (np.linalg.norm(embedding.weights_[:, block]) for block in (slice(0, 6), slice(6, 12)))
    assert signal > 1.5 * noise


def test_it_begins_with_the_distances_of_the_features():
    features = two_blocks()
    embedding = LinearEmbedding(size=16, steps=1, batch_size=3, learning_rate=1e-12).fit(features, LABELS)
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    found = embedding.transform(features)
    np.testing.assert_allclose(found @ found.T, units @ units.T, atol=1e-5)


def test_the_seed_is_all_that_chance_depends_on():
    features = two_blocks()
    state = torch.random.get_rng_state()
    one, two, other = (LinearEmbedding(**SMALL, seed=seed).fit(features, LABELS) for seed in (1, 1, 2))
    assert np.array_equal(one.weights_, two.weights_)
    assert not np.array_equal(one.weights_, other.weights_)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, torch.bfloat16])
def test_dtypes(dtype):
    wide = two_blocks()
    given = torch.from_numpy(wide).to(dtype) if isinstance(dtype, torch.dtype) else wide.astype(dtype)
    embedding = LinearEmbedding(**SMALL).fit(given, LABELS)
    found = embedding.transform(given)
    assert embedding.weights_.dtype == found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(found, LinearEmbedding(**SMALL).fit(wide, LABELS).transform(wide), atol=0.1)


def test_memory_maps_pickling_and_cloning(tmp_path):
    features = two_blocks()
    np.save(tmp_path / "features.npy", features)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    embedding = LinearEmbedding(**SMALL).fit(mapped, LABELS)
    expected = LinearEmbedding(**SMALL).fit(features, torch.from_numpy(LABELS)).transform(features)
    assert np.array_equal(embedding.transform(mapped), expected)
    assert np.array_equal(pickle.loads(pickle.dumps(embedding)).transform(features), expected)
    assert clone(embedding).get_params() == embedding.get_params()
    with pytest.raises(NotFittedError, match="got LinearEmbedding before fit"):
        clone(embedding).transform(features)


def test_a_row_of_zeros_stays_one():
    features = two_blocks()
    features[0] = 0
    embedding = LinearEmbedding(**SMALL).fit(features, LABELS)
    found = embedding.transform(features)
    assert np.isfinite(embedding.weights_).all()
    assert not found[0].any()


def test_progress_counts_steps():
    calls = []
    features = two_blocks()
    embedding = LinearEmbedding(size=2, steps=120, batch_size=3)
    embedding.fit(features, LABELS, progress=lambda *call: calls.append(call))
    assert calls == [("linear embedding", done, 120) for done in (50, 100, 120)]
    calls.clear()
    embedding.transform(features, progress=lambda *call: calls.append(call))
    assert calls == [("linear embedding", 60, 60)]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"size": 0}, "size: got 0, expected a whole number, at least 1"),
        ({"steps": 0}, "steps: got 0"),
        ({"seed": -1}, "seed: got -1"),
        ({"batch_size": 4}, "batch_size: got 4, expected a multiple of 3"),
        ({"learning_rate": 0.0}, r"learning_rate: got 0\.0, expected a finite number above 0"),
        ({"learning_rate": "fast"}, "learning_rate: got 'fast'"),
        ({"momentum": 1.0}, r"momentum: got 1\.0, expected a finite number at least 0 and below 1"),
        ({"weight_decay": -1e-9}, "weight_decay: got -1e-09, expected a finite number at least 0"),
        ({"gap": 0}, "gap: got 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        LinearEmbedding(**{**SMALL, **arguments}).fit(two_blocks(), LABELS)


@pytest.mark.parametrize(
    ("features", "data", "match"),
    [
        (two_blocks(), {}, "labels, relevance: got neither"),
        (two_blocks(), {"labels": LABELS[:-1]}, "labels: got 59, expected one for each of 60 rows"),
        (two_blocks(), {"relevance": np.ones((3, 3))}, "relevance: got 3, expected one for each of 60 rows"),
        (two_blocks(), {"relevance": 3}, "relevance: got 3, expected one"),
        (two_blocks(), {"labels": LABELS * 0}, "got one class only"),
        (two_blocks()[0], {"labels": LABELS}, r"features: got float32 of shape \(12,\)"),
        (np.full((60, 2), np.inf), {"labels": LABELS}, "features: row 0: got inf"),
    ],
)
def test_bad_training_data_is_refused(features, data, match):
    with pytest.raises(ValueError, match=match):
        LinearEmbedding(**SMALL).fit(features, **data)


def test_weights_that_overflow_are_refused():
    with pytest.raises(ValueError, match="with which the weights overflowed: lower it"):
        LinearEmbedding(**{**SMALL, "learning_rate": 1e38, "weight_decay": 10.0}).fit(two_blocks(), LABELS)


def test_features_of_another_dimension_are_refused():
    embedding = LinearEmbedding(**SMALL).fit(two_blocks(), LABELS)
    with pytest.raises(ValueError, match=r"shape \(2, 5\), expected numbers of shape \(N, 12\)"):
        embedding.transform(np.ones((2, 5)))


def test_example_runs():
    results = doctest.testmod(sys.modules[LinearEmbedding.__module__])
    assert results.attempted > 0
    assert results.failed == 0
