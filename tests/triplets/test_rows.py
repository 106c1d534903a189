"""Rows of weights: sorted, drawn from by whole numbers, against float64 sums and explicit loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dr_plugin.triplets.rows as rows_module
from dr_plugin.triplets import RANDOM_BITS, ClassLayout
from dr_plugin.triplets.rows import TOTAL, RelevanceRows

LARGEST = torch.finfo(torch.float32).max
DENORMAL = 1e-45
extreme = st.sampled_from([0.0, -0.0, DENORMAL, 1e-38, 1e-30, 0.3, 1.0, 7.0, 1e30, LARGEST])


@settings(deadline=None, max_examples=80)
@given(st.lists(extreme, min_size=1, max_size=12), st.none() | st.sampled_from([1e-40, 0.5, 1e35]))
def test_whole_numbers_are_in_proportion_to_extreme_weights(values, threshold):
    rows = _one_row(values, threshold=threshold)
    weights = sorted(min(v, threshold or math.inf) for v in torch.tensor(values).tolist())
    whole = _whole_numbers(rows, len(values))
    assert sum(whole) == rows.total.item() <= TOTAL
    for number, weight in zip(whole, weights, strict=True):
        p = weight / (math.fsum(weights) or 1)
        assert (number > 0) == (weight > 0)
        if sum(whole):
            assert abs(number / sum(whole) - p) <= (1 + len(values) * p) / 2**31 * 1.01


@settings(deadline=None, max_examples=80)
@given(st.lists(extreme, min_size=1, max_size=12))
def test_each_possible_entry_is_drawn_and_no_other(values):
    rows = _one_row(values)
    whole = _whole_numbers(rows, len(values))
    total, before = sum(whole), np.concatenate([[0], np.cumsum(whole)])
    for place, number in enumerate(whole):
        if number:  # the first and the last random number of the entry's share
            ends = [-(-int(b) * 2**RANDOM_BITS // total) for b in (before[place], before[place] + number)]
            bits = torch.tensor([ends[0], ends[1] - 1])
            drawn = rows.reference(_zeros(2), rows.draw(_zeros(2), bits))
            assert drawn.tolist() == [_by_relevance(values)[place]] * 2


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=9),
    st.lists(st.sampled_from([0.0, 0.25, 1.0, 3.0]), min_size=81, max_size=81),
    st.sampled_from([None, 0.5]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_sums_and_extremes_of_rows(labels, values, threshold, uniform, positive_only, factors):
    layout = ClassLayout(torch.tensor(labels))
    i, j = layout.pairs()
    r = torch.tensor(values).view(9, 9)
    weights = torch.tensor([1.0, 0, 2, 3, 1, 0, 0.5, 1, 4]).double()[: len(labels)] if factors else None
    rows = RelevanceRows(
        layout,
        torch.where(i == j, torch.nan, r[i, j]),
        threshold=threshold,
        candidate_weights=weights,
        uniform=uniform,
        positive_only=positive_only,
    )
    for row, q in enumerate(layout.queries.tolist()):
        mates = [n for n, label in enumerate(labels) if label == labels[q] and n != q]
        factor = {n: weights[n].item() if factors else 1.0 for n in mates}
        possible = [
            r[q, n].item()
            for n in mates
            if factor[n] > 0 and (r[q, n] > 0 or (uniform and not positive_only))
        ]
        assert rows.sums[row].item() == sum(r[q, n].item() * factor[n] for n in mates)
        assert (rows.total[row] > 0) == bool(possible)
        if possible:
            assert rows.lowest[row] == min(possible)
            assert rows.highest[row] == max(possible)
        if possible and positive_only:
            assert rows.zeros[row] == sum(r[q, n] == 0 for n in mates)


def test_rows_are_sorted_with_ties_by_place_and_the_image_itself_last():
    layout = ClassLayout(torch.zeros(4).long())
    rows = RelevanceRows(layout, torch.tensor([9, 2, 1, 2, 9, 9, 0, 1, 3, 3, 3, 3, 5, 0, -0.0, 0]))
    assert rows.values.view(4, 4)[:, :3].tolist() == [[1, 2, 2], [0, 1, 9], [3, 3, 3], [0, 0, 5]]
    entries = torch.arange(16)
    order = rows.reference(entries // 4, entries).view(4, 4)
    assert order.tolist() == [[2, 1, 3, 0], [2, 3, 0, 1], [0, 1, 3, 2], [1, 2, 0, 3]]


@pytest.mark.parametrize(("entries", "count"), [(1, 1), (7, 2), (20, 100), (2**17, 3)])
def test_rows_made_in_parts_are_the_rows_made_at_once(monkeypatch, entries, count):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (30,), generator=generator)
    layout = ClassLayout(labels, torch.randint(-1, 4, (25,), generator=generator))
    values = torch.randint(4, (layout.size,), generator=generator) / 3
    whole = RelevanceRows(layout, values)
    monkeypatch.setattr(rows_module, "_CHUNK", entries)
    monkeypatch.setattr(rows_module, "_CHUNK_ROWS", count)
    parts = RelevanceRows(layout, values)
    for name in ("values", "sums", "total", "lowest", "highest", "zeros", "_running", "_place"):
        assert torch.equal(getattr(parts, name), getattr(whole, name))


def test_a_row_longer_than_a_part_is_drawn_from_whole(monkeypatch):
    monkeypatch.setattr(rows_module, "_CHUNK", 1000)
    values = torch.linspace(0, 1, 40_000).flip(0)  # places do not fit into 16 bits
    rows = _one_row(values)
    bits = torch.linspace(0, 1, 2001).double().mul_(2**RANDOM_BITS - 2**10).long()
    drawn = rows.reference(_zeros(2001), rows.draw(_zeros(2001), bits))
    share = torch.linspace(0, 1, 2001).double()  # of the least relevant: the square root of it, by rank
    expected = 39_999 - 39_999 * share.sqrt()
    assert (drawn - expected).abs().max() <= 40
    assert drawn[-1] == 0


def test_one_long_row_among_very_many_short_ones_is_sorted():
    layout = ClassLayout(
        torch.cat((torch.zeros(40_000), torch.ones(1))).long(),
        torch.cat((torch.zeros(1), torch.ones(80_000))).long(),
    )
    values = torch.rand(layout.size, generator=torch.Generator().manual_seed(0))
    rows = RelevanceRows(layout, values)
    assert torch.equal(rows.values[:40_000], values[:40_000])
    assert torch.equal(rows.values[40_000:], values[40_000:].sort().values)


def test_values_of_a_read_only_memory_map_and_of_other_float_types(tmp_path):
    np.save(tmp_path / "values.npy", np.array([0, 1, 2, 0], np.float32))
    layout = ClassLayout(torch.tensor([0, 0]))
    expected = RelevanceRows(layout, torch.tensor([0.0, 1, 2, 0]))
    for values in (
        np.load(tmp_path / "values.npy", mmap_mode="r"),
        np.array([0, 1, 2, 0], np.float64),
        torch.tensor([0.0, 1, 2, 0], dtype=torch.bfloat16),
    ):
        rows = RelevanceRows(layout, values)
        assert torch.equal(rows.values, expected.values)
        assert torch.equal(rows.sums, expected.sums)


def test_values_given_are_not_written_to():
    values = torch.tensor([5.0, 1, 2, 5])
    RelevanceRows(ClassLayout(torch.tensor([0, 0])), values)
    assert values.tolist() == [5, 1, 2, 5]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.tensor([0, torch.nan, 1, 0]), "relevance: got nan, expected every r"),
        (torch.tensor([0, 1, -1.0, 0]), r"relevance: got -1.0, expected every r"),
        (torch.tensor([0, torch.inf, 1, 0]), "relevance: got inf"),
        (np.array([0, 1e39, 1, 0]), "relevance: got inf"),  # more than float32 holds
        (torch.ones(3), r"values: got torch.float32 of shape \(3,\), expected .* \(4,\)"),
        (torch.ones(4).long(), "values: got torch.int64"),
    ],
)
def test_bad_values_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        RelevanceRows(ClassLayout(torch.tensor([0, 0])), values)


def _one_row(values, **options):
    """One query with as many references, all of its class."""
    layout = ClassLayout(torch.tensor([0]), torch.zeros(len(values), dtype=torch.long))
    return RelevanceRows(layout, torch.as_tensor(values, dtype=torch.float32), **options)


def _by_relevance(values):
    return sorted(range(len(values)), key=lambda place: (torch.tensor(values)[place].item(), place))


def _whole_numbers(rows, count):
    """Of the only row's entries, in its sorted order."""
    return rows.weight(_zeros(count), torch.arange(count)).tolist()


def _zeros(count):
    return torch.zeros(count, dtype=torch.long)
