"""Tables as relevances, and relevances class by class, against explicit loops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dr_plugin.triplets import ClassLayout, Relevance, TableRelevance, as_relevance, blocks, class_entries
from dr_plugin.triplets import relevances as relevances_module


class ByFormula:
    """r(i, j) = 1 + i + 10 j, not symmetric, with no block; notes what it was asked for."""

    def __init__(self, count):
        self.count, self.asked = count, []

    def __len__(self):
        return self.count

    def pairs(self, i, j):
        self.asked += zip(i.tolist(), j.tolist(), strict=True)
        return 1.0 + i + 10 * j

    def total(self, i):
        raise NotImplementedError


class WithBlock(ByFormula):
    def block(self, members):
        self.asked.append(members.tolist())
        return 1.0 + members[:, None] + 10 * members


labels_lists = st.none() | st.lists(st.integers(-1, 2), min_size=5, max_size=5)


@settings(deadline=None)
@given(labels_lists)
def test_table_gives_pairs_blocks_and_totals_of_classes(labels):
    table = _symmetric(5)
    relevance = TableRelevance(table, labels)
    labels = labels or [0] * 5
    expected = [[table[i, j] if i != j and labels[i] == labels[j] else 0 for j in range(5)] for i in range(5)]
    i, j = np.divmod(np.arange(25), 5)
    assert relevance.pairs(i, j).reshape(5, 5).tolist() == expected
    assert relevance.block(np.arange(5)).tolist() == expected
    assert relevance.block([3, 1]).tolist() == [[0, expected[3][1]], [expected[1][3], 0]]
    assert relevance.total(np.arange(5)).tolist() == pytest.approx([sum(row) for row in expected])
    assert relevance.pairs(i, j).dtype == np.float32
    assert isinstance(relevance, Relevance)


def test_table_keeps_a_memory_map_and_ignores_its_diagonal(tmp_path):
    table = _symmetric(4)
    np.fill_diagonal(table, [np.nan, -1, np.inf, 7])
    np.save(tmp_path / "table.npy", table)
    mapped = np.load(tmp_path / "table.npy", mmap_mode="r")
    relevance = TableRelevance(mapped)
    assert np.shares_memory(relevance._table, mapped)
    assert relevance.block(np.arange(4)).diagonal().tolist() == [0] * 4
    assert relevance.total([2]) == pytest.approx(sum(float(table[2, j]) for j in (0, 1, 3)))
    assert relevance.pairs([0, 1], [0, 1]).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[:2], r"expected numbers of shape \(N, N\)"),
        (lambda t: t[0], "expected numbers of shape"),
        (lambda t: t.astype(str), "expected numbers of shape"),
        (lambda t: _with(t, (0, 2), np.nan), r"r\(0, 2\) = nan, expected every r finite"),
        (lambda t: _with(t, (2, 1), -1.0), r"r\(2, 1\) = -1.0, expected every r finite"),
        (lambda t: _with(t, (1, 2), np.inf), r"r\(1, 2\) = inf"),
        (lambda t: _with(t.astype(np.float64), (1, 2), 1e39), r"r\(1, 2\) = inf"),
        (lambda t: _with(t, (2, 0), 50.0), r"r\(0, 2\) = .* and r\(2, 0\) = 50.0, expected a symmetric"),
    ],
)
@pytest.mark.parametrize("chunk", [2**20, 4])
def test_bad_tables_are_refused(monkeypatch, change, message, chunk):
    monkeypatch.setattr(relevances_module, "_CHUNK", chunk)
    with pytest.raises(ValueError, match=message):
        TableRelevance(change(_symmetric(3)))


def test_table_symmetric_but_for_rounding_is_taken():
    table = _symmetric(3) * 1e-30
    table[0, 1] *= np.float32(1 + 1e-6)
    assert len(TableRelevance(table)) == 3


@pytest.mark.parametrize("labels", [[0, 0], [0.0, 1.0, 2.0], [[0, 1, 2]]])
def test_labels_that_do_not_match_the_table_are_refused(labels):
    with pytest.raises(ValueError, match=r"labels: got .*, expected an integer for each image, \(3,\)"):
        TableRelevance(_symmetric(3), labels)


def test_as_relevance_returns_objects_and_wraps_tables():
    relevance = ByFormula(3)
    assert as_relevance(relevance, [0, 1, 0], 3) is relevance
    wrapped = as_relevance(_symmetric(3).tolist(), [0, 1, 0], 3)
    assert isinstance(wrapped, TableRelevance)
    assert wrapped.labels.tolist() == [0, 1, 0]
    assert as_relevance(torch.from_numpy(_symmetric(3)), None, 3).labels is None


@pytest.mark.parametrize("labels", [None, [7, 7, 2], torch.tensor([-1, -1, 4])])
def test_as_relevance_takes_labels_that_name_the_same_classes(labels):
    relevance = TableRelevance(_symmetric(3), [5, 5, 6])
    assert as_relevance(relevance, labels, 3) is relevance


@pytest.mark.parametrize(
    ("relevance", "labels", "message"),
    [
        (ByFormula(4), None, "relevance: got one of 4 images, expected 3"),
        (np.ones((3, 2)), None, r"relevance: got ndarray of shape \(3, 2\), expected an object .* \(3, 3\)"),
        (np.ones((4, 4)), None, r"of shape \(4, 4\)"),
        ("gaussian", None, r"relevance: got str of shape \(\)"),
        (TableRelevance(np.ones((3, 3)), [0, 0, 1]), [0, 1, 1], "labels: got other classes than"),
        (TableRelevance(np.ones((3, 3)), [0, 0, 1]), [0, 1], r"labels: got int64 of shape \(2,\)"),
    ],
)
def test_as_relevance_refuses_what_does_not_fit(relevance, labels, message):
    with pytest.raises(ValueError, match=message):
        as_relevance(relevance, labels, 3)


@settings(deadline=None)
@given(st.lists(st.integers(-1, 2), max_size=9), st.sampled_from([ByFormula, WithBlock]), st.integers(1, 30))
def test_blocks_and_entries_are_in_the_order_of_the_layout(labels, kind, chunk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relevances_module, "_CHUNK", chunk)
        entries = class_entries(kind(len(labels)), labels)
        members = [part.tolist() for part, _ in blocks(kind(len(labels)), labels)]
    i, j = ClassLayout(torch.tensor(labels, dtype=torch.long)).pairs()
    expected = (1.0 + i + 10 * j).numpy()
    different = (i != j).numpy()
    assert entries.shape == expected.shape
    assert entries[different].tolist() == expected[different].tolist()
    assert members == [[i for i, x in enumerate(labels) if x == label] for label in sorted(set(labels))]


def test_blocks_of_no_labels_are_one_block():
    ((members, block),) = blocks(ByFormula(4), None)
    assert members.tolist() == [0, 1, 2, 3]
    assert block[1].tolist() == [2, 0, 22, 32]
    assert class_entries(ByFormula(4), None).tolist() == block.ravel().tolist()


def test_blocks_ask_for_no_image_with_itself_and_for_no_other_class():
    relevance = ByFormula(5)
    list(blocks(relevance, [0, 1, 0, 2, 1]))
    assert sorted(relevance.asked) == [(0, 2), (1, 4), (2, 0), (4, 1)]


def test_blocks_use_block_where_there_is_one():
    relevance = WithBlock(5)
    list(blocks(relevance, [0, 1, 0, 2, 1]))
    assert relevance.asked == [[0, 2], [1, 4]]


def test_entries_are_written_where_asked():
    out = np.full(5, -1, np.float32)
    assert class_entries(WithBlock(3), [0, 1, 0], out) is out
    assert out.tolist() == [1, 21, 3, 23, 0]
    with pytest.raises(ValueError, match=r"out: got ndarray of float64, shape \(5,\), expected a float32"):
        class_entries(WithBlock(3), [0, 1, 0], np.zeros(5))


@pytest.mark.parametrize("name", ["block", "pairs"])
def test_relevances_of_the_wrong_shape_are_refused(name):
    relevance = WithBlock(3) if name == "block" else ByFormula(3)
    setattr(relevance, name, lambda *indices: np.ones(2))
    with pytest.raises(ValueError, match=rf"relevance.{name}: got shape \(2,\), expected \("):
        list(blocks(relevance, [0, 0, 0]))


def _symmetric(n):
    table = np.random.default_rng(0).random((n, n), dtype=np.float32)
    return table + table.T


def _with(table, at, value):
    table[at] = value
    return table


def test_graded_relevance_is_cut_to_the_labels_and_so_are_its_totals():
    """A relevance of any two images, given together with classes: what is across them counts for nothing."""
    table = np.array([[0, 1, 9, 9], [1, 0, 9, 9], [9, 9, 0, 2], [9, 9, 2, 0]], np.float32)
    found = as_relevance(TableRelevance(table), np.array([0, 0, 1, 1]), 4)
    every = np.arange(4)
    assert found.total(every).tolist() == [1, 1, 2, 2]
    assert found.pairs(np.array([0, 0, 2]), np.array([1, 2, 3])).tolist() == [1, 0, 2]
    assert as_relevance(TableRelevance(table), None, 4).total(every).tolist() == [19, 19, 20, 20]


def test_tensor_is_taken_for_a_table_whatever_its_dtype_and_gradient():
    table = torch.tensor([[0.0, 2], [2, 0]], dtype=torch.bfloat16, requires_grad=True)
    assert as_relevance(table, None, 2).pairs(np.array([0]), np.array([1])).tolist() == [2]
