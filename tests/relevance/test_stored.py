import json
import os
import pickle
import signal
import subprocess
import sys

import numpy as np
import pytest

from dr_plugin.relevance import (
    FeatureRelevance,
    FunctionRelevance,
    MultiLabelRelevance,
    StoredRelevance,
    TableRelevance,
    base,
)

LABELS = [4, 2, 4, 4, 2, 9, 4, 2]
EVERYTHING = np.arange(8)


def draw(seed=0):
    return np.random.default_rng(seed).random((8, 5)).astype(np.float32)


def features(seed=0, labels=LABELS):
    return FeatureRelevance(draw(seed), labels, bandwidth=0.8)


def uneven(i, j):
    return i + 2.0 * j


class Foreign:
    """A relevance that is not built on ours: pairs and totals alone, any diagonal."""

    def __init__(self, values, labels=None):
        self.values = np.asarray(values, np.float32)
        if labels is not None:
            self.labels = labels

    def __len__(self):
        return len(self.values)

    def pairs(self, i, j):
        assert (i != j).all()
        return self.values[i, j]

    def total(self, i):
        raise NotImplementedError


class ForeignBlocks(Foreign):
    def block(self, members):
        return self.values[np.ix_(members, members)]


@pytest.mark.parametrize(
    ("relevance", "key"),
    [
        (features(), None),
        (features(labels=None), None),
        (features(labels=range(8)), None),
        (FunctionRelevance(uneven, LABELS), "uneven"),
        (TableRelevance(draw()[:, :1] + draw()[:, 0], LABELS), "table"),
        (MultiLabelRelevance([{i % 3, i % 5} for i in range(8)], labels=LABELS), None),
    ],
    ids=["features", "graded", "singletons", "function", "table", "multi-label"],
)
def test_stored_equals_unstored_exactly(relevance, key, tmp_path):
    kept = StoredRelevance.build(relevance, tmp_path / "new" / "folder", key=key)
    blocks = relevance.block(EVERYTHING)
    assert np.array_equal(kept.block(EVERYTHING), blocks)
    assert np.array_equal(kept.total(EVERYTHING), relevance.total(EVERYTHING))
    i, j = np.indices((8, 8)).reshape(2, -1)
    assert np.array_equal(kept.pairs(i, j), blocks.ravel())
    assert np.array_equal(kept.rectangle([3, 1, 1], [6, 3, 0]), blocks[np.ix_([3, 1, 1], [6, 3, 0])])
    for members in kept.classes:
        assert np.array_equal(kept.block(members), blocks[np.ix_(members, members)])
    assert np.array_equal(kept.labels, relevance.labels)
    assert len(kept) == 8
    assert kept.pairs([], []).shape == kept.total([]).shape == (0,)
    assert (kept.pairs(i, j).dtype, kept.total([0]).dtype) == (np.float32, np.float64)


def test_a_block_may_be_changed_and_the_store_is_not(tmp_path):
    kept = StoredRelevance.build(features(), tmp_path)
    members = kept.classes.members(1)
    kept.block(members)[:] = -1
    assert (kept.block(members) >= 0).all()


@pytest.mark.parametrize("entries", [1, 9])
def test_strips_of_any_size_store_the_same(entries, tmp_path, monkeypatch):
    wanted = StoredRelevance.build(FunctionRelevance(uneven, count=8), tmp_path / "whole", key="a")
    monkeypatch.setattr(base, "_STRIP", entries)
    values = uneven(*np.indices((8, 8)))
    for name, relevance in {
        "ours": FunctionRelevance(uneven, count=8),
        "pairs": Foreign(values),
        "blocks": ForeignBlocks(values),
    }.items():
        kept = StoredRelevance.build(relevance, tmp_path / name, key="a")
        assert np.array_equal(kept.block(EVERYTHING), wanted.block(EVERYTHING))
        assert np.array_equal(kept.total(EVERYTHING), wanted.total(EVERYTHING))


@pytest.mark.parametrize("kind", [Foreign, ForeignBlocks])
def test_a_foreign_relevance_is_stored_by_the_labels_it_has_or_is_given(kind, tmp_path):
    values = draw()[:, :1] + draw()[:, :1].T
    wanted = np.where(np.equal.outer(LABELS, LABELS) & ~np.eye(8, dtype=bool), values, 0)
    values[np.diag_indices(8)] = np.nan  # the diagonal is nobody's
    own = StoredRelevance.build(kind(values, LABELS), tmp_path / "own", key="v")
    given = StoredRelevance.build(kind(values), tmp_path / "given", key="v", labels=LABELS)
    for kept in (own, given):
        assert np.array_equal(kept.block(EVERYTHING), wanted)
        np.testing.assert_allclose(kept.total(EVERYTHING), wanted.sum(axis=1), rtol=1e-6)


@pytest.mark.parametrize("kind", [Foreign, ForeignBlocks])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -1.0])
def test_bad_relevances_are_not_stored(kind, wrong, tmp_path):
    values = np.ones((8, 8))
    values[2, 6] = wrong
    with pytest.raises(ValueError, match=r"relevance: got .*, expected every relevance finite"):
        StoredRelevance.build(kind(values), tmp_path, key="a")
    with pytest.raises(ValueError, match="got no whole store"):
        StoredRelevance(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == []


def test_a_block_of_the_wrong_shape_is_refused(tmp_path):
    class Wrong(ForeignBlocks):
        def block(self, members):
            return self.values[:2, :2]

    with pytest.raises(ValueError, match=r"relevance.block: got shape \(2, 2\), expected \(8, 8\)"):
        StoredRelevance.build(Wrong(np.ones((8, 8))), tmp_path, key="a")


class Counted(FunctionRelevance):
    """Counts how often it is asked."""

    def __init__(self, labels=LABELS):
        super().__init__(uneven, labels)
        self.calls = 0

    def _pairs(self, i, j):
        self.calls += 1
        return super()._pairs(i, j)


def test_the_same_relevance_is_reused(tmp_path):
    first, second = Counted(), Counted()
    StoredRelevance.build(first, tmp_path, key="a")
    StoredRelevance.build(second, tmp_path, key="a")
    assert first.calls > second.calls == 0


@pytest.mark.parametrize("change", ["features", "labels", "bandwidth", "key"])
def test_a_changed_relevance_is_stored_anew(change, tmp_path):
    StoredRelevance.build(features(), tmp_path)
    changed = {
        "features": features(seed=1),
        "labels": features(labels=[0] * 8),
        "bandwidth": FeatureRelevance(draw(), LABELS, bandwidth=0.9),
        "key": features(),
    }[change]
    before = {path.name for path in tmp_path.iterdir()}
    kept = StoredRelevance.build(changed, tmp_path, key="other" if change == "key" else None)
    assert np.array_equal(kept.block(EVERYTHING), changed.block(EVERYTHING))
    assert np.array_equal(StoredRelevance(tmp_path).block(EVERYTHING), changed.block(EVERYTHING))
    after = {path.name for path in tmp_path.iterdir()}
    assert len(after) == len(before) == 4  # the older store is gone
    assert len(after & before) == 2  # meta.json and the lock


def test_relabelled_classes_and_no_classes_are_other_stores(tmp_path):
    for labels in ([0] * 8, [1] * 8, None):
        kept = StoredRelevance.build(FunctionRelevance(uneven, labels, count=8), tmp_path, key="a")
        assert np.array_equal(kept.labels, labels)


@pytest.mark.parametrize(
    "damage", ["no meta", "broken meta", "truncated", "no blocks", "no images", "format"]
)
def test_a_damaged_store_is_refused_and_built_again(damage, tmp_path):
    StoredRelevance.build(features(), tmp_path)
    meta = tmp_path / "meta.json"
    (blocks,), (images,) = tmp_path.glob("blocks-*"), tmp_path.glob("images-*")
    if damage == "no meta":
        meta.unlink()
    elif damage == "broken meta":
        meta.write_text("{")
    elif damage == "truncated":
        os.truncate(blocks, blocks.stat().st_size - 4)
    elif damage == "format":
        meta.write_text(json.dumps({**json.loads(meta.read_text()), "format": 0}))
    else:
        (blocks if damage == "no blocks" else images).unlink()
    with pytest.raises(
        ValueError, match=r"got (no whole store|a store that is truncated or of another format)"
    ):
        StoredRelevance(tmp_path)
    kept = StoredRelevance.build(features(), tmp_path)
    assert np.array_equal(kept.block(EVERYTHING), features().block(EVERYTHING))


KILLED = """
import os, signal, sys
from dr_plugin.relevance import FunctionRelevance, StoredRelevance

def function(i, j):
    if 8 in i:  # in the last class
        os.kill(os.getpid(), signal.SIGKILL)
    return i + 2.0 * j

StoredRelevance.build(FunctionRelevance(function, [0, 0, 0, 0, 0, 1, 1, 2, 2]), sys.argv[1], key="new")
"""


@pytest.mark.parametrize("older", [False, True])
def test_a_killed_build_leaves_nothing_that_is_taken_for_whole(older, tmp_path):
    if older:
        StoredRelevance.build(features(), tmp_path)
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path], timeout=300, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob("*.partial"))) == 1
    if older:  # the older store is still whole
        assert np.array_equal(StoredRelevance(tmp_path).block(EVERYTHING), features().block(EVERYTHING))
    else:
        with pytest.raises(ValueError, match="got no whole store"):
            StoredRelevance(tmp_path)
    relevance = FunctionRelevance(uneven, [0, 0, 0, 0, 0, 1, 1, 2, 2])
    kept = StoredRelevance.build(relevance, tmp_path, key="new")
    assert np.array_equal(kept.block(np.arange(9)), relevance.block(np.arange(9)))
    assert not list(tmp_path.glob("*.partial"))


def test_progress_counts_images(tmp_path):
    calls = []
    StoredRelevance.build(features(), tmp_path, progress=lambda *call: calls.append(call))
    task = "storing relevances"
    assert calls == [(task, 3, 8), (task, 7, 8), (task, 8, 8)]  # classes 2, 4 and 9


def test_pickling_opens_the_map_again(tmp_path):
    relevance = FunctionRelevance(uneven, count=200)
    kept = StoredRelevance.build(relevance, tmp_path, key="a")
    data = pickle.dumps(kept)
    assert len(data) < 20_000 < 4 * 200**2
    copy = pickle.loads(data)
    assert np.array_equal(copy.block(np.arange(200)), kept.block(np.arange(200)))
    assert np.array_equal(copy.total([3, 5]), kept.total([3, 5]))


def test_a_relative_folder_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps(StoredRelevance.build(features(), "here"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert pickle.loads(data).pairs([0], [2]) > 0


def test_more_than_max_bytes_is_refused_before_any_work(tmp_path):
    relevance = Counted(labels=[0] * 8)
    with pytest.raises(
        ValueError, match="max_bytes: got 255, expected at least 256 for classes of up to 8 images"
    ):
        StoredRelevance.build(relevance, tmp_path / "new", key="a", max_bytes=255)
    assert relevance.calls == 0
    assert not (tmp_path / "new").exists()
    StoredRelevance.build(relevance, tmp_path / "new", key="a", max_bytes=256)
    with pytest.raises(ValueError, match=r"expected at least 40,000,000,000"):
        StoredRelevance.build(FunctionRelevance(uneven, count=100_000), tmp_path / "new", key="a")


def test_what_has_no_fingerprint_needs_a_key(tmp_path):
    for relevance in (FunctionRelevance(uneven, LABELS), Foreign(np.ones((8, 8)))):
        with pytest.raises(
            ValueError, match=r"key: got None with a F.* that has no fingerprint, expected a key"
        ):
            StoredRelevance.build(relevance, tmp_path)


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        ([0, 1], r"labels: got int64 of shape \(2,\)"),
        ([4, 2, 4, 4, 2, 9, 4, 4], "labels: got other classes than the relevance's own"),
    ],
)
def test_labels_that_do_not_match_are_refused(labels, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        StoredRelevance.build(features(), tmp_path, labels=labels)


def test_other_names_for_the_same_classes_are_accepted(tmp_path):
    renamed = [{4: 0, 2: 5, 9: 1}[label] for label in LABELS]
    kept = StoredRelevance.build(features(), tmp_path, labels=renamed)
    assert kept.labels.tolist() == renamed
    assert np.array_equal(kept.block(EVERYTHING), features().block(EVERYTHING))


def test_a_folder_without_a_store_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"got no whole store .*: make one with StoredRelevance.build"):
        StoredRelevance(tmp_path / "nowhere")


def test_a_store_can_be_stored(tmp_path):
    first = StoredRelevance.build(features(), tmp_path / "first")
    second = StoredRelevance.build(first, tmp_path / "second")
    assert np.array_equal(second.block(EVERYTHING), first.block(EVERYTHING))
