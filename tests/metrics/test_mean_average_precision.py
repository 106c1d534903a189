"""Average precision against the Oxford script's loop, scikit-learn, and by hand."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from dr_plugin.metrics import mean_average_precision


def oxford(row, junk, count):
    """compute_ap.cpp of the Oxford Buildings data set, line by line."""
    old_recall, old_precision, ap, intersect, j = 0.0, 1.0, 0.0, 0, 0
    for ok, ignored in zip(row, junk, strict=True):
        if ignored:
            continue
        if ok:
            intersect += 1
        recall = intersect / count
        precision = intersect / (j + 1.0)
        ap += (recall - old_recall) * ((old_precision + precision) / 2.0)
        old_recall, old_precision = recall, precision
        j += 1
    return ap


def plain(row, junk, count):
    """Mean of the precisions at the relevant images, of a list without the ignored."""
    kept = [ok for ok, ignored in zip(row, junk, strict=True) if not ignored]
    return sum(sum(kept[: i + 1]) / (i + 1) for i, ok in enumerate(kept) if ok) / count


LOOPS = {"mean": plain, "trapezoid": oxford}
# For each query and place: 1 is relevant, 2 is ignored.
RANKINGS = st.integers(1, 12).flatmap(
    lambda width: st.lists(
        st.lists(st.integers(0, 2), min_size=width, max_size=width), min_size=1, max_size=6
    )
)


@pytest.mark.parametrize("convention", ["mean", "trapezoid"])
@settings(deadline=None)
@given(kinds=RANKINGS, unfound=st.integers(1, 4))
def test_values_equal_the_loops(convention, kinds, unfound):
    table = torch.tensor(kinds)
    relevant, ignored = table == 1, table == 2
    counts = relevant.sum(1) + unfound
    values = mean_average_precision(
        relevant, counts, ignored=ignored, convention=convention, reduction="none", out_of="all"
    )
    expected = [
        LOOPS[convention](*rows)
        for rows in zip(relevant.tolist(), ignored.tolist(), counts.tolist(), strict=True)
    ]
    assert values.tolist() == pytest.approx(expected, abs=1e-6)
    mean = mean_average_precision(relevant, counts, ignored=ignored, convention=convention)
    assert mean.item() == pytest.approx(sum(expected) / len(expected), abs=1e-6)
    assert ((values >= 0) & (values <= 1)).all()


def test_a_whole_ranking_is_scikit_learns_average_precision():
    generator = torch.Generator().manual_seed(0)
    relevant = torch.rand(20, 50, generator=generator) < 0.2
    values = mean_average_precision(relevant, relevant.sum(1), reduction="none")
    scores = -np.arange(50)
    assert values.tolist() == pytest.approx(
        [average_precision_score(row.numpy(), scores) for row in relevant]
    )


@pytest.mark.parametrize("convention", ["mean", "trapezoid"])
def test_all_relevant_first_is_one_and_none_found_is_zero(convention):
    relevant = torch.tensor([[True, True, False, False], [False] * 4])
    values = mean_average_precision(relevant, torch.tensor([2, 3]), convention=convention, reduction="none")
    assert values.tolist() == [1, 0]


def test_ignored_images_are_as_if_they_were_not_there():
    generator = torch.Generator().manual_seed(0)
    relevant = torch.rand(30, generator=generator) < 0.3
    ignored = (torch.rand(30, generator=generator) < 0.4) & ~relevant
    for convention in ("mean", "trapezoid"):
        with_them = mean_average_precision(
            relevant[None], relevant.sum()[None], ignored=ignored[None], convention=convention
        )
        without = mean_average_precision(
            relevant[~ignored][None], relevant.sum()[None], convention=convention
        )
        assert with_them == without
        assert with_them > mean_average_precision(relevant[None], relevant.sum()[None], convention=convention)


def test_a_truncated_ranking_is_never_better_than_the_whole():
    relevant = torch.rand(10, 40, generator=torch.Generator().manual_seed(1)) < 0.3
    counts = relevant.sum(1)
    values = [mean_average_precision(relevant[:, :k], counts).item() for k in (1, 5, 20, 40)]
    assert values == sorted(values)
    assert values[0] <= 1 / counts.min()


def test_out_of_reachable_lets_a_truncated_ranking_reach_one():
    relevant = torch.tensor([[True, True, True], [True, False, False]])
    counts = torch.tensor([100, 1])
    assert mean_average_precision(relevant, counts, reduction="none").tolist() == pytest.approx([0.03, 1])
    reachable = mean_average_precision(relevant, counts, out_of="reachable", reduction="none")
    assert reachable.tolist() == [1, 1]
    ignored = torch.tensor([[False] * 3, [False, True, True]])
    counts = torch.tensor([100, 50])  # one place is left to the second
    assert mean_average_precision(relevant, counts, ignored=ignored, out_of="reachable") == 1


def test_queries_without_relevant_images_go_by_the_choice():
    relevant, counts = torch.tensor([[True, False], [False, False]]), torch.tensor([1, 0])
    assert mean_average_precision(relevant, counts) == 1
    assert mean_average_precision(relevant, counts, without_relevant="zero") == 0.5
    assert mean_average_precision(relevant, counts, reduction="none").isnan().tolist() == [False, True]
    zeros = mean_average_precision(relevant, counts, reduction="none", without_relevant="zero")
    assert zeros.tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"1 queries without any relevant image \(the first: 1\)"):
        mean_average_precision(relevant, counts, without_relevant="error")
    with pytest.raises(ValueError, match="no query with a relevant image"):
        mean_average_precision(relevant[1:], counts[1:])
    assert mean_average_precision(relevant[1:], counts[1:], without_relevant="zero") == 0


def test_chunks_change_nothing(monkeypatch):
    table = torch.randint(3, (23, 11), generator=torch.Generator().manual_seed(0))
    arguments = table == 1, (table == 1).sum(1) + 1
    whole = mean_average_precision(*arguments, ignored=table == 2, reduction="none")
    module = sys.modules["dr_plugin.metrics.mean_average_precision"]
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 40)
    assert torch.equal(mean_average_precision(*arguments, ignored=table == 2, reduction="none"), whole)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_counts_of_any_integer_type_and_numpy(dtype):
    relevant = torch.tensor([[True, False, True]])
    value = mean_average_precision(relevant, torch.tensor([2], dtype=dtype))
    assert (value.dtype, value.item()) == (torch.float32, pytest.approx(5 / 6))
    assert mean_average_precision(relevant.numpy(), np.array([2])) == value


YES = torch.tensor([[True, False]])


@pytest.mark.parametrize(
    ("relevant", "counts", "options", "match"),
    [
        (YES.float(), [1], {}, "relevant .* of torch.float32, expected"),
        (YES[0], [1], {}, r"relevant \(2,\)"),
        (YES[:0], [], {}, r"relevant \(0, 2\)"),
        (YES[:, :0], [2], {}, r"relevant \(1, 0\) .* Q and K at least 1"),
        (YES, [1.0], {}, "relevant_count .* of torch.float32"),
        (YES, [1, 1], {}, r"relevant_count \(2,\)"),
        (
            YES,
            [0],
            {},
            "query 0: got 1 relevant images in its ranking, expected at most its relevant_count, 0",
        ),
        (YES, [1], {"ignored": torch.zeros(1, 3, dtype=torch.bool)}, r"ignored \(1, 3\)"),
        (YES, [1], {"ignored": YES.long()}, "ignored .* of torch.int64"),
        (YES, [1], {"ignored": YES}, "query 0: got an image both relevant and ignored"),
        (YES, [1], {"convention": "oxford"}, "convention='oxford', expected one of"),
        (YES, [1], {"out_of": "some"}, "out_of='some'"),
        (YES, [1], {"without_relevant": "nan"}, "without_relevant='nan'"),
        (YES, [1], {"reduction": "class"}, "reduction='class'"),
    ],
)
def test_bad_input_is_refused(relevant, counts, options, match):
    with pytest.raises(ValueError, match=match):
        mean_average_precision(relevant, torch.tensor(counts), **options)
