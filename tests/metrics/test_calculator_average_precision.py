"""Mean average precision at k inside RankingAccuracyCalculator, against loops and PML."""

import pytest
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import FaissKNN

from dr_plugin.metrics import RankingAccuracyCalculator, mean_average_precision, nearest


def average_precisions(neighbor_labels, query_labels, class_sizes, k):
    """One query after the other: precisions at the hits, out of what a class could have among k."""
    values = []
    for row, query in zip(neighbor_labels.tolist(), query_labels.tolist(), strict=True):
        hits, total = 0, 0.0
        for place, label in enumerate(row[:k], start=1):
            if label == query:
                hits += 1
                total += hits / place
        values.append(total / min(k, class_sizes[query]))
    return values


@pytest.mark.parametrize("k", [1, 7, 30])
@pytest.mark.parametrize("alone", [False, True])
def test_mean_average_precision_at_k_equals_the_loop(split, k, alone):
    query, query_labels, reference, labels = split
    calculator = RankingAccuracyCalculator(k=1, map_at=(k,), device="cpu")
    if alone:
        figures = calculator.get_accuracy(reference, labels)
        neighbor_labels = labels[nearest(reference, reference, k, exclude_self=True)[1]]
        values = average_precisions(neighbor_labels, labels, dict.fromkeys(range(6), 19), k)
    else:
        figures = calculator.get_accuracy(query, query_labels, reference, labels)
        neighbor_labels = labels[nearest(query, reference, k)[1]]
        values = average_precisions(neighbor_labels, query_labels, dict.fromkeys(range(6), 20), k)
    assert figures.keys() == {"precision_at_1", f"mean_average_precision_at_{k}"}
    assert figures[f"mean_average_precision_at_{k}"] == pytest.approx(sum(values) / len(values))


def test_mean_average_precision_at_k_by_class(split):
    query, query_labels, reference, labels = split
    classes = RankingAccuracyCalculator(k=1, map_at=(9,), return_per_class=True, device="cpu")
    listed = classes.get_accuracy(*split)["mean_average_precision_at_9"]
    values = average_precisions(
        labels[nearest(query, reference, 9)[1]], query_labels, dict.fromkeys(range(6), 20), 9
    )
    own = query_labels.tolist()
    expected = []
    for label in sorted(set(own)):
        of_class = [value for value, other in zip(values, own, strict=True) if other == label]
        expected.append(sum(of_class) / len(of_class))
    assert listed == pytest.approx(expected)


def test_mean_average_precision_over_the_whole_reference_equals_pml(split):
    theirs = AccuracyCalculator(
        include=("mean_average_precision",), k=120, device=torch.device("cpu"), knn_func=FaissKNN()
    ).get_accuracy(*split)
    ours = RankingAccuracyCalculator(k=1, map_at=(120,), device="cpu").get_accuracy(*split)
    assert ours["mean_average_precision_at_120"] == pytest.approx(theirs["mean_average_precision"])
    query, query_labels, reference, labels = split
    relevant = labels[nearest(query, reference, 120)[1]] == query_labels[:, None]
    assert ours["mean_average_precision_at_120"] == pytest.approx(
        mean_average_precision(relevant, relevant.sum(1)).item()
    )
