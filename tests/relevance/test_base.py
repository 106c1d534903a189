import numpy as np
import pytest

from dr_plugin.relevance import BaseRelevance, Relevance, base
from dr_plugin.relevance.base import checked_values, digest

LABELS = [1, 0, 1, 1, 5, 0, 1]  # 5: a class of one image


class Distances(BaseRelevance):
    """r(i, j) = i + 2 j, not symmetric; notes what it is asked for."""

    def __init__(self, labels, count=7):
        super().__init__(count, labels)
        self.asked = []

    def _pairs(self, i, j):
        self.asked += zip(i.tolist(), j.tolist(), strict=True)
        return (i + 2 * j).astype(np.float32)


def expected(labels, count=7):
    values = np.zeros((count, count), np.float32)
    for i in range(count):
        for j in range(count):
            if i != j and (labels is None or labels[i] == labels[j]):
                values[i, j] = i + 2 * j
    return values


@pytest.fixture(params=[LABELS, None], ids=["classes", "graded"])
def labels(request):
    return request.param


def test_every_method_against_loops(labels):
    relevance, values = Distances(labels), expected(labels)
    i, j = (part.ravel() for part in np.indices(values.shape))
    assert isinstance(relevance, Relevance)
    assert len(relevance) == len(values)
    assert np.array_equal(relevance.pairs(i, j), values.ravel())
    assert np.array_equal(relevance.block(np.arange(7)), values)
    assert np.array_equal(relevance.block([2, 0, 6]), values[np.ix_([2, 0, 6], [2, 0, 6])])
    assert np.array_equal(relevance.rectangle([2, 1, 2], [3, 2]), values[np.ix_([2, 1, 2], [3, 2])])
    assert np.array_equal(relevance.total(np.arange(7)), values.sum(axis=1, dtype=np.float64))
    dtypes = relevance.pairs(i, j).dtype, relevance.block([0, 1]).dtype, relevance.total([0]).dtype
    assert dtypes == (np.float32, np.float32, np.float64)


def test_a_subclass_is_asked_only_for_different_images_of_one_class():
    relevance = Distances(LABELS)
    everything = np.arange(7)
    relevance.pairs(*(part.ravel() for part in np.indices((7, 7))))
    relevance.block(everything)
    relevance.total(everything)
    assert relevance.asked
    assert all(i != j and LABELS[i] == LABELS[j] for i, j in relevance.asked)


@pytest.mark.parametrize("entries", [1, 5, 12])
def test_small_pieces_change_nothing(labels, entries, monkeypatch):
    whole = Distances(labels)
    i, j = (part.ravel() for part in np.indices((7, 7)))
    wanted = whole.pairs(i, j), whole.block(np.arange(7)), whole.total(np.arange(7))
    monkeypatch.setattr(base, "_STRIP", entries)
    monkeypatch.setattr(base, "_PAIRS", entries)
    pieces = Distances(labels)
    found = pieces.pairs(i, j), pieces.block(np.arange(7)), pieces.total(np.arange(7))
    assert all(map(np.array_equal, found, wanted))


def test_strips_are_of_bounded_size(monkeypatch):
    monkeypatch.setattr(base, "_STRIP", 15)
    everything = np.arange(7)
    strips = list(Distances(None).strips(everything, everything))
    assert [strip.shape for _, strip in strips] == [(2, 7), (2, 7), (2, 7), (1, 7)]
    assert np.concatenate([rows for rows, _ in strips]).tolist() == everything.tolist()


def test_totals_are_computed_once():
    relevance = Distances(LABELS)
    first = relevance.total([0, 2, 0])
    asked = len(relevance.asked)
    assert asked == 4 * 3  # the class of 0 and 2, no other
    assert np.array_equal(relevance.total([0, 2, 0]), first)
    assert relevance.total([4]).tolist() == [0]  # the only image of its class
    assert len(relevance.asked) == asked


def test_totals_of_a_large_class_are_computed_for_the_images_asked_for(monkeypatch):
    monkeypatch.setattr(base, "_STRIP", 48)  # less than 7 x 7
    relevance = Distances(None)
    assert relevance.total([3]).tolist() == [expected(None)[3].sum()]
    assert {i for i, _ in relevance.asked} == {3}


def test_nothing_asked_is_nothing_answered(labels):
    relevance = Distances(labels)
    assert relevance.pairs([], []).shape == (0,)
    assert relevance.total([]).shape == (0,)
    assert relevance.block([]).shape == (0, 0)
    assert relevance.rectangle([], [1, 2]).shape == (0, 2)
    assert relevance.rectangle([1, 2], []).shape == (2, 0)


def test_one_image():
    relevance = Distances([3], 1)
    assert relevance.total([0]).tolist() == relevance.pairs([0], [0]).tolist() == [0]
    assert relevance.block([0]).tolist() == [[0]]


def test_bad_indices_are_refused():
    relevance = Distances(LABELS)
    with pytest.raises(ValueError, match="got 2 i and 1 j"):
        relevance.pairs([0, 1], [1])
    with pytest.raises(IndexError, match="j: got 7, expected 0 to 6"):
        relevance.pairs([0], [7])
    with pytest.raises(IndexError, match="i: got -1"):
        relevance.total([-1])
    with pytest.raises(ValueError, match="expected integers"):
        relevance.block([0.5])


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ([1.0], r"source: got float64 of shape \(1,\), expected numbers \(2,\)"),
        ([[1.0, 2.0]], r"shape \(1, 2\)"),
        (["1", "2"], "source: got <U1"),
        ([1j, 0], "got complex128"),
        ([1.0, -0.5], "got -0.5, expected every relevance finite"),
        ([np.nan, 1.0], "got nan"),
        ([1.0, np.inf], "got inf"),
        ([1e300, 1.0], r"got inf, expected every relevance finite \(float32\)"),
        (None, "got object"),
    ],
)
def test_bad_values_are_refused(values, match):
    with pytest.raises(ValueError, match=match):
        checked_values(values, (2,), "source")


def test_checked_values_are_a_copy():
    given = np.ones(2, np.float32)
    checked_values(given, (2,), "source")[0] = 0
    assert given[0] == 1
    assert checked_values([True, False], (2,), "source").tolist() == [1, 0]


def test_digest_tells_content_dtype_shape_and_order(tmp_path):
    values = np.arange(6, dtype=np.float32)
    np.save(tmp_path / "values.npy", values)
    assert digest(np.load(tmp_path / "values.npy", mmap_mode="r")) == digest(values)
    changed = values.copy()
    changed[5] = 0
    others = [changed, values.reshape(2, 3), values.astype(np.float64), values.view(np.int32)]
    digests = {digest(other) for other in [values, *others]}
    digests |= {digest(b"ab", b"c"), digest(b"a", b"bc"), digest(values, b"a"), digest(b"a", values)}
    assert len(digests) == 9
