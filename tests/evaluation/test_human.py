import json

import numpy as np
import pytest
import torch

from dr_plugin.evaluation.data import RatedData
from dr_plugin.evaluation.human import FeatureDistances, HeldDistances, judge
from dr_plugin.evaluation.ingredients import GoldenDistances, joined


class Images:
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count


def rated(triplets, texts, count, degenerate=()):
    groups = np.unique(texts, return_inverse=True)[1]
    return RatedData(
        name="toy",
        images=Images(count),
        triplets=torch.tensor(triplets),
        text_queries=list(texts),
        groups=torch.from_numpy(groups),
        degenerate=torch.tensor(degenerate, dtype=torch.long),
        counts={"triplets": len(triplets)},
    )


def random_case(seed, texts=12, each=4):
    """Every text query has images of its own; points in the plane."""
    rng = np.random.default_rng(seed)
    triplets, names = [], []
    for text in range(texts):
        pool = np.arange(8) + 8 * text
        for _ in range(each):
            triplets.append(rng.permutation(pool)[:3].tolist())
            names.append(f"text {text}")
    return rated(triplets, names, 8 * texts), rng.normal(size=(8 * texts, 2)).astype(np.float32)


@pytest.mark.parametrize("seed", range(3))
def test_figures_equal_explicit_loops(seed):
    data, points = random_case(seed)
    figures = judge(FeatureDistances("euclidean", points, data.triplets), data, k=3, resamples=100).figures
    right = own = share = whole = 0
    for (q, p, n), text in zip(data.triplets.tolist(), data.text_queries, strict=True):
        distance = np.linalg.norm(points - points[q], axis=1)
        right += distance[p] < distance[n]
        sign = np.sign(distance[n] - distance[p])
        members = {
            image
            for triplet, other in zip(data.triplets.tolist(), data.text_queries, strict=True)
            for image in triplet
            if other == text
        } - {q}
        best = min(sum(distance[j] < distance[a] for j in members) + 1 for a in (p, n))
        own += sign * (best <= 3)
        share += sign * (best <= max(1, round(0.03 * len(members))))
        everyone = set(range(len(points))) - {q}
        whole += sign * (min(sum(distance[j] < distance[a] for j in everyone) + 1 for a in (p, n)) <= 3)
    assert figures["similarity_precision"]["value"] == pytest.approx(right / len(data.triplets))
    assert figures["score_at_top_3"]["score"] == own
    assert figures["score_at_top_share"]["score"] == share
    assert figures["score_at_top_3_of_all"]["score"] == whole


def test_degenerate_triplets_are_shown_apart():
    data = rated([[0, 1, 2], [3, 3, 4], [5, 6, 7]], ["a", "b", "c"], 8, degenerate=[1])
    points = np.array([[0.0], [1], [5], [0], [9], [0], [4], [1]], np.float32)
    figures = judge(FeatureDistances("euclidean", points, data.triplets), data, k=1, resamples=100).figures
    assert figures["similarity_precision"]["value"] == pytest.approx(2 / 3)
    assert figures["similarity_precision_without_degenerate"]["value"] == pytest.approx(1 / 2)


def test_right_is_what_a_paired_test_compares():
    data = rated([[0, 1, 2], [0, 2, 1], [0, 1, 3]], ["a", "a", "b"], 4)
    points = np.array([[0.0], [1], [2], [1]], np.float32)
    judged = judge(FeatureDistances("manhattan", points, data.triplets), data, k=1, resamples=100)
    assert judged.right.tolist() == [1.0, 0.0, 0.5]


def test_nan_features_are_refused():
    data, points = random_case(0)
    points[3] = np.nan
    with pytest.raises(ValueError, match="finite"):
        judge(FeatureDistances("euclidean", points, data.triplets), data, resamples=100)


def test_golden_distances_beat_a_noise_part_and_are_out_of_fold():
    rng = np.random.default_rng(0)
    triplets, names, good = [], [], rng.normal(size=(360, 1)).astype(np.float32)
    for text in range(60):
        for _ in range(2):
            q, *others = (rng.permutation(6) + 6 * text).tolist()[:3]
            triplets.append([q, *sorted(others, key=lambda i: abs(good[i, 0] - good[q, 0]))])
            names.append(f"t{text}")
    data = rated(triplets, names, 360)
    noise = rng.normal(size=(360, 1)).astype(np.float32)
    parts = [FeatureDistances("euclidean", points, data.triplets) for points in (noise, good)]
    golden = GoldenDistances(parts, data, folds=5, seed=0)
    precision = [
        judge(part, data, resamples=100).figures["similarity_precision"]["value"] for part in (*parts, golden)
    ]
    assert precision[2] > precision[0] + 0.2
    assert (golden.golden.weights_[:, 1] > golden.golden.weights_[:, 0]).all()
    folds = golden.golden.folds_
    for text in set(names):
        assert len({int(fold) for fold, name in zip(folds, names, strict=True) if name == text}) == 1


def test_golden_distances_of_queries_agree_with_those_of_triplets():
    data, points = random_case(1, texts=20)
    rng = np.random.default_rng(5)
    # Answers in the order of the points, but for some noise: else no weights are learned.
    order = [
        [q, *sorted((p, n), key=lambda i: np.linalg.norm(points[i] - points[q]) + 0.3 * rng.normal())]
        for q, p, n in data.triplets.tolist()
    ]
    data = rated(order, data.text_queries, len(points))
    parts = [FeatureDistances("euclidean", points[:, [i]], data.triplets) for i in (0, 1)]
    golden = GoldenDistances(parts, data, folds=4, seed=0)
    zero, margins = golden.of_triplets()
    for number, (q, p, n) in enumerate(data.triplets.tolist()):
        row = golden.of_queries(torch.tensor([q]))[0]
        assert float(row[n] - row[p]) == pytest.approx(margins[number] - zero[number], abs=1e-4)


def test_joined_names_each_kind_once():
    assert joined("nothing", "nothing") == "nothing"
    assert (
        joined("class labels", "nothing", "class labels; unrated relevance")
        == "class labels; unrated relevance"
    )


def test_one_group_has_no_interval_and_the_figures_are_json():
    data = rated([[0, 1, 2]], ["a"], 3)
    points = np.array([[0.0], [1], [2]], np.float32)
    figures = judge(FeatureDistances("euclidean", points, data.triplets), data, k=1, resamples=100).figures
    assert figures["similarity_precision"]["low"] is None
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_held_distances_are_computed_once_and_only_for_queries():
    data, points = random_case(2)
    asked = []

    class Counted(FeatureDistances):
        def of_queries(self, queries):
            asked.extend(queries.tolist())
            return super().of_queries(queries)

    inner = Counted("euclidean", points, data.triplets)
    held = HeldDistances(inner, data.triplets, len(points))
    queries = data.triplets[:, 0].flip(0)
    for _ in range(2):
        torch.testing.assert_close(held.of_queries(queries), FeatureDistances.of_queries(inner, queries))
    assert sorted(asked) == data.triplets[:, 0].unique().tolist()
    other = next(i for i in range(len(points)) if i not in asked)
    torch.testing.assert_close(
        held.of_queries(torch.tensor([other])), FeatureDistances.of_queries(inner, torch.tensor([other]))
    )


def test_distances_that_are_too_many_to_hold_are_computed_when_asked_for(monkeypatch):
    monkeypatch.setattr("dr_plugin.evaluation.human._MOST_BYTES", 10)
    data, points = random_case(2)
    inner = FeatureDistances("euclidean", points, data.triplets)
    held = HeldDistances(inner, data.triplets, len(points))
    torch.testing.assert_close(held.of_queries(torch.tensor([0, 8])), inner.of_queries(torch.tensor([0, 8])))
    assert held._held is None
