"""TripletStream: the law of its triplets, its parts, its epochs and states, and the bad images of a stream."""

import io
import logging
import pickle
from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chi2
from torch.utils.data import DataLoader, IterableDataset

from dr_plugin.datasets import TripletStream, write_shards
from dr_plugin.datasets.image_buffers import OVERHEAD
from dr_plugin.triplets.kernels import Kernel

N = 120
LABELS = np.arange(N) % 4 * 11 - 11  # classes -11, 0, 11, 22
# One colour each.
IMAGES = np.arange(N, dtype=np.uint8)[:, None, None, None].repeat(3, 1).repeat(4, 2).repeat(5, 3)


class Relevances:
    """r(i, j) = v_i v_j within a class of the images."""

    def __init__(self, values=None, labels=LABELS):
        self.values = (
            np.random.default_rng(1).uniform(0.2, 2, len(labels)) if values is None else np.array(values)
        )
        self._table = np.outer(self.values, self.values) * np.equal.outer(labels, labels)
        np.fill_diagonal(self._table, 0)

    def __len__(self):
        return len(self._table)

    def pairs(self, i, j):
        return self._table[i, j]

    def total(self, i):
        return self._table[i].sum(axis=1)


def product(x, y):
    return (x * y).sum(axis=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    relevance = Relevances()
    where = tmp_path_factory.mktemp("shards")
    write_shards(
        IMAGES, LABELS, where, relevance=relevance, features=relevance.values[:, None], images_per_shard=20
    )
    return where


def _stream(source, **changes):
    return TripletStream(source, **({"batch_size": 15, "byte_budget": 60_000, "seed": 3} | changes))


def _indices(batch):
    images, labels = batch
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.long
    indices = images[:, 0, 0, 0].long()
    assert (images == indices[:, None, None, None]).all()
    assert (torch.from_numpy(LABELS)[indices] == labels).all()
    return indices.tolist()


def _passes(stream, passes=1, **loader):
    """The images' indices of each batch, of several passes."""
    batches = DataLoader(stream, batch_size=None, **loader) if loader else stream
    return [[_indices(batch) for batch in batches] for _ in range(passes)]


def _flat(lists):
    return list(chain.from_iterable(lists))


def _items(indices, values, labels):
    relevance = Relevances(values, labels)
    return [
        (IMAGES[i].transpose(1, 2, 0), labels[i], relevance.total([i])[0], values[i : i + 1]) for i in indices
    ]


# The law


def _law(labels, values, ratio, threshold, margin, weighting, pairs=True):
    """The exact probability of each triplet, by loops."""
    relevance, images = Relevances(values, labels), range(len(labels))
    uniform = weighting == "uniform"
    law = Counter()
    for kind, share in (("out", ratio), ("in", 1 - ratio)):
        attempts = Counter()
        for q in images:
            weight = {x: 1.0 if uniform else min(threshold, relevance.pairs(q, x)) for x in images}
            if not pairs:
                weight = {x: relevance.total([x])[0] for x in images}
            mates = [x for x in images if labels[x] == labels[q] and x != q]
            others = [x for x in images if labels[x] != labels[q]]
            start = 1.0 if uniform else relevance.total([q])[0]
            for p in mates:
                chance = start * weight[p] / sum(weight[x] for x in mates)
                gaps = {n: relevance.pairs(q, p) - relevance.pairs(q, n) for n in mates if n != p}
                allowed = [n for n, gap in gaps.items() if gap > 0 and gap >= margin]
                for n in others if kind == "out" else allowed:
                    attempts[q, p, n] = chance * (
                        1 / len(others) if kind == "out" else weight[n] / sum(weight[x] for x in allowed)
                    )
        for triplet, chance in attempts.items():
            law[triplet] += share * chance / sum(attempts.values())
    return {triplet: chance for triplet, chance in law.items() if chance > 0}


@pytest.mark.parametrize(
    ("ratio", "threshold", "margin", "weighting", "pairs"),
    [
        (1.0, None, 0.0, "relevance", False),
        (1.0, 0.7, 0.0, "relevance", True),
        (0.4, None, 0.0, "relevance", True),
        (0.0, 0.9, 0.3, "relevance", True),
        (0.3, None, 0.3, "uniform", True),
    ],
)
def test_triplets_follow_the_exact_law_where_the_whole_stream_is_held(
    ratio, threshold, margin, weighting, pairs
):
    labels = np.array([7, 7, 7, 7, 2, 2, 2, 5, 5, 5])
    values = np.array([0.3, 0.8, 1.3, 2.0, 0.5, 1.0, 1.1, 0.4, 0.9, 1.6])
    items = _items(range(10), values, labels)
    stream = TripletStream(
        lambda: items,
        batch_size=3000,
        byte_budget=10**6,
        batches_per_epoch=12,
        triplets_per_image=100.0,
        out_of_class_ratio=ratio,
        relevance_threshold=threshold,
        relevance_margin=margin,
        weighting=weighting,
        pair_relevance=product if pairs else None,
        max_trials=10_000,
    )
    indices = np.concatenate([images[:, 0, 0, 0].view(-1, 3).numpy() for images, _ in stream])
    counts = Counter(map(tuple, indices.tolist()))
    law = _law(labels, values, ratio, np.inf if threshold is None else threshold, margin, weighting, pairs)
    assert counts.keys() <= law.keys()
    draws = len(indices)
    rare = [triplet for triplet, p in law.items() if draws * p < 5]
    merged = [(sum(counts[t] for t in rare), sum(law[t] for t in rare))] if rare else []
    cells = [(counts[t], p) for t, p in law.items() if t not in set(rare)] + merged
    statistic = sum((count - draws * p) ** 2 / (draws * p) for count, p in cells)
    assert 0.001 < chi2.sf(statistic, len(cells) - 1) < 0.999
    assert stream.counters["inexact"] < 0.02 * draws  # those with which the bounds were learned
    assert stream.counters["in_class"] == draws - stream.counters["out_of_class"]


def test_image_of_relevance_0_is_an_out_of_class_negative_only():
    labels, values = np.array([0, 0, 0, 1, 1, 1]), np.array([1.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    stream = _stream(lambda: _items(range(6), values, labels), batches_per_epoch=40)
    roles = [set(), set(), set()]
    for images, _ in stream:
        for role, image in enumerate(images[:, 0, 0, 0].view(-1, 3).T):
            roles[role] |= set(image.tolist())
    assert roles == [{0, 1, 3, 4}, {0, 1, 3, 4}, set(range(6))]


# Batches and the flow of the stream


def test_batches_are_query_positive_negative_with_their_labels(folder):
    stream = _stream(folder)
    (batches,) = _passes(stream)
    assert len(batches) == len(stream) == 8  # 120 images / 15
    for batch in batches:
        query, positive, negative = np.array(batch).reshape(-1, 3).T
        assert (LABELS[query] == LABELS[positive]).all()
        assert (query != positive).all()
        assert (LABELS[query] != LABELS[negative]).all()
    assert stream.counters["accepted"] == stream.counters["out_of_class"] == 40


@pytest.mark.parametrize(
    ("pair_relevance", "relevance"),
    [
        (product, np.multiply),
        ("intersection", lambda x, y: np.minimum(x, y) / np.maximum(x, y)),
        (Kernel("gaussian", 1.0), lambda x, y: -np.abs(x - y)),
    ],
    ids=["function", "name", "kernel"],
)
def test_in_class_negatives_keep_the_order_and_the_share(folder, pair_relevance, relevance):
    stream = _stream(folder, out_of_class_ratio=0.5, pair_relevance=pair_relevance, batch_size=600)
    (batches,) = _passes(stream)
    query, positive, negative = np.concatenate(batches).reshape(-1, 3).T
    inside = LABELS[query] == LABELS[negative]
    assert 0.35 < inside.mean() < 0.65
    values = Relevances().values
    above = relevance(values[query], values[positive]) > relevance(values[query], values[negative])
    assert above[inside].all()
    assert stream.counters["in_class"] == inside.sum()


def test_every_image_comes_though_few_are_held(folder):
    stream = _stream(folder, byte_budget=24_000, weighting="uniform")
    batches = _passes(stream, 10)
    assert set(_flat(_flat(batches))) == set(range(N))
    assert stream.counters["inexact"] > 0


@pytest.mark.parametrize("triplets_per_image", [1 / 3, 0.7, 5.0])
def test_so_many_images_are_streamed_for_each_batch(folder, triplets_per_image):
    counted = []
    stream = _stream(folder, triplets_per_image=triplets_per_image, batches_per_epoch=20)
    for _ in stream:
        counted.append(stream.counters["streamed"])
    steps = np.diff(counted)
    assert set(steps) <= {int(5 / triplets_per_image), int(5 / triplets_per_image) + 1}
    assert sum(steps) == int(19 * 5 / triplets_per_image + 1e-6)
    assert len(_stream(folder, triplets_per_image=triplets_per_image)) == -(
        -round(N * triplets_per_image) // 5
    )


def test_only_what_is_in_a_batch_is_decoded(folder, monkeypatch):
    decoded = []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda file: decoded.append(1) or original(file))
    stream = _stream(folder, batch_size=6, batches_per_epoch=10)
    stream.set_epoch(0, 7)
    list(stream)
    assert 9 <= len(decoded) <= 18


def test_size_resizes_and_crops(folder):
    images, _ = next(iter(_stream(folder, size=3)))
    assert images.shape == (15, 3, 3, 3)


@pytest.mark.parametrize(
    "convert",
    [
        lambda pixels: pixels,
        Image.fromarray,
        lambda pixels: torch.from_numpy(pixels).permute(2, 0, 1),
        "bytes",
    ],
    ids=["array", "PIL", "tensor", "bytes"],
)
def test_callable_gives_images_in_any_form(convert):
    def encode(pixels):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    turn = encode if convert == "bytes" else convert
    items = [(turn(IMAGES[i].transpose(1, 2, 0)), LABELS[i], 1.0) for i in range(N)]
    (batches,) = _passes(_stream(lambda: items, batches_per_epoch=3))
    assert len(batches) == 3


def test_shards_without_relevance_are_for_uniform_weighting(tmp_path):
    write_shards(IMAGES, LABELS, tmp_path)
    (batches,) = _passes(_stream(tmp_path, weighting="uniform"))
    assert len(batches) == 8
    with pytest.raises(
        ValueError, match=r"got no relevance, expected one \(\.json\), or .* weighting='uniform'"
    ):
        list(_stream(tmp_path))


# Parts


def _part_items(number, parts):
    mixed = np.random.default_rng(0).permutation(N)  # every fourth image would be of one class
    return [(IMAGES[i].transpose(1, 2, 0), LABELS[i], 1.0) for i in mixed[number::parts]]


@pytest.mark.parametrize("source", ["shards", "dealt", "presplit"])
def test_every_image_belongs_to_one_rank_and_worker(folder, source):
    options = {"batches_per_epoch": 40, "byte_budget": 10**6, "world_size": 2, "batch_size": 30}
    parts = Counter()
    for rank in range(2):
        if source == "shards":
            stream = _stream(folder, rank=rank, **options)
        elif source == "dealt":
            stream = _stream(lambda: _part_items(0, 1), rank=rank, **options)
        else:
            stream = _stream(_part_items, rank=rank, presplit=True, **options)
        (batches,) = _passes(stream, num_workers=2)
        assert len(batches) == 40
        workers = [set(_flat(batches[worker::2])) for worker in range(2)]
        for worker in workers:
            parts.update(worker)
    assert parts == Counter(range(N))


def test_shards_are_dealt_anew_each_epoch(folder):
    stream = _stream(folder, rank=0, world_size=2, batches_per_epoch=40, byte_budget=10**6)
    first, second = (set(_flat(batches)) for batches in _passes(stream, 2))
    assert len(first) == len(second) == N / 2
    assert first != second


@pytest.mark.parametrize(("ranks", "workers"), [(7, 0), (4, 2)])
def test_fewer_shards_than_parts_are_refused(folder, ranks, workers):
    message = f"got 6 shards for {ranks} ranks x {workers or 1} loader workers, .* smaller shards"
    with pytest.raises(ValueError, match=message):
        _passes(_stream(folder, rank=1, world_size=ranks), num_workers=workers)


def test_ranks_give_equally_many_batches(folder):
    assert [len(_stream(folder, rank=rank, world_size=3)) for rank in range(3)] == [3, 3, 3]


def test_rank_is_that_of_torch_distributed(folder, monkeypatch):
    late = _stream(folder)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    stream = _stream(folder)
    assert (stream.rank, stream.world_size) == (1, 3)
    assert len(list(stream)) == 3
    with pytest.raises(ValueError, match="initialised after the stream was made"):
        iter(late)


@pytest.mark.parametrize("workers", [0, 2])
def test_budget_holds_for_all_workers_together(folder, workers, monkeypatch):
    from dr_plugin.datasets import stream_part

    seen = []
    original = stream_part.ImageBuffers.__init__

    def record(self, byte_budget, seed):
        seen.append(byte_budget)
        original(self, byte_budget, seed)

    monkeypatch.setattr(stream_part.ImageBuffers, "__init__", record)
    stream = _stream(folder, byte_budget=60_001)
    if workers == 0:
        next(iter(stream))
    else:
        monkeypatch.setattr(
            "dr_plugin.datasets.stream.get_worker_info",
            lambda: type("Info", (), {"id": 1, "num_workers": workers}),
        )
        next(iter(stream))
    assert seen == [60_001 // max(1, workers)]


# Epochs and states


@pytest.mark.parametrize(
    "loader", [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}], ids=str
)
def test_each_pass_is_the_next_epoch(folder, loader):
    stream = _stream(folder)
    batches = DataLoader(stream, batch_size=None, **loader) if loader else stream
    epochs = []
    for epoch in range(3):
        assert stream.position == (epoch, 0)
        epochs.append([_indices(batch) for batch in batches])
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    stream.set_epoch(1)
    assert [_indices(batch) for batch in batches] == epochs[1]
    assert stream.position == (2, 0)
    assert [len(epoch) for epoch in epochs] == [8, 8, 8]


def test_epochs_depend_on_seed_and_epoch_only(folder):
    first = _passes(_stream(folder))
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  the global generators must not matter
    before = torch.get_rng_state()
    assert _passes(_stream(folder)) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert _passes(_stream(folder, seed=4)) != first


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("consumed", [0, 1, 4, 8])
def test_state_continues_in_the_middle_of_an_epoch(folder, workers, consumed):
    loader = {"num_workers": workers}
    expected = _passes(_stream(folder), 3, **loader)
    stream = _stream(folder)
    _passes(stream, 1, **loader)
    epoch, start = stream.position
    running = iter(DataLoader(stream, batch_size=None, **loader))
    trained = [_indices(next(running)) for _ in range(consumed)]  # the workers are ahead by now
    state = stream.state_dict(epoch, start + consumed)
    del running
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    resumed = _stream(folder)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    rest = _passes(resumed, 2, **loader)
    assert (trained + _flat(rest))[:16] == expected[1] + expected[2]


def test_state_of_a_resumed_epoch_counts_from_the_epochs_start(folder):
    (expected,) = _passes(_stream(folder))
    second, third = _stream(folder), _stream(folder)
    second.load_state_dict(second.state_dict(0, 2))
    epoch, start = second.position
    assert (epoch, start) == (0, 2)
    assert _indices(next(iter(second))) == expected[2]
    third.load_state_dict(second.state_dict(epoch, start + 1))
    assert _passes(third) == [expected[3:]]


def test_loop_that_sets_every_epoch_keeps_the_loaded_position(folder):
    stream = _stream(folder)
    stream.load_state_dict(stream.state_dict(2, 3))
    stream.set_epoch(2)
    assert stream.position == (2, 3)
    stream.set_epoch(3)
    assert stream.position == (3, 0)


def test_resume_with_another_number_of_workers_is_refused(folder):
    stream = _stream(folder)
    _passes(stream, num_workers=2)
    state = stream.state_dict(1, 4)
    stream.load_state_dict(state)
    with pytest.raises(ValueError, match="num_workers: got 1, expected 2"):
        iter(stream)
    stream.load_state_dict(stream.state_dict(1, 0) | {"workers": 2})
    assert len(list(stream)) == 8


def test_pickled_stream_gives_the_same(folder):
    stream = _stream(folder, pair_relevance="intersection", out_of_class_ratio=0.5)
    stream.set_epoch(2, 3)
    copy = pickle.loads(pickle.dumps(stream))
    assert copy.position == (2, 3)
    assert _passes(copy) == _passes(stream)


def test_workers_may_be_spawned(folder):
    # A kernel by name: a function of this file could not be imported in a process that is started anew.
    streams = [_stream(folder, pair_relevance="intersection", out_of_class_ratio=0.5) for _ in range(2)]
    spawned = _passes(streams[1], num_workers=1, multiprocessing_context="spawn")
    assert spawned == _passes(streams[0])


def test_counters_of_workers_are_seen_here(folder):
    stream = _stream(folder)
    _passes(stream, 2, num_workers=2)
    assert stream.counters["accepted"] == 80
    assert stream.counters["streamed"] >= 2 * (120 - 2 * 15)
    assert stream.counters["bad_images"] == 0


# Bad images


def _with_bad(tmp_path, bad, images_per_shard=20):
    """Shards in which the images with these indices are no images."""
    for index in range(N):
        path = tmp_path / f"{index}.png"
        if index in bad:
            path.write_bytes(bad[index])
        else:
            Image.fromarray(IMAGES[index].transpose(1, 2, 0)).save(path)
    paths = [tmp_path / f"{index}.png" for index in range(N)]
    write_shards(
        paths, LABELS, tmp_path / "shards", relevance=Relevances(), images_per_shard=images_per_shard
    )
    return tmp_path / "shards"


def _truncated(index):
    file = io.BytesIO()
    Image.effect_noise((32, 32), 50).save(file, "PNG")
    return file.getvalue()[:-200]


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_counted_named_and_skipped(tmp_path, caplog, workers):
    bad = {5: b"", 17: b"no image", 40: _truncated(40), 99: IMAGES.tobytes()[:300]}
    stream = _stream(_with_bad(tmp_path, bad), max_bad_images=4, batches_per_epoch=40)
    with caplog.at_level(logging.WARNING):
        (batches,) = _passes(stream, num_workers=workers)
    seen = {index for batch in batches for index in batch}
    assert not seen & bad.keys()
    assert len(seen) > 0.8 * N
    assert [len(batch) for batch in batches] == [15] * 40
    assert stream.counters["bad_images"] == 4
    if workers == 0:
        named = sorted(record.args[0].name for record in caplog.records)
        assert len(named) == 4
        assert all(name.startswith("images-00000") for name in named)
        assert sorted(int(name.split(": ")[1]) for name in named) == sorted(bad)


def test_resume_is_exact_over_bad_images(tmp_path):
    folder = _with_bad(tmp_path, dict.fromkeys(range(0, N, 9), b"x"))
    (expected,) = _passes(_stream(folder, max_bad_images=20))
    stream = _stream(folder, max_bad_images=20)
    stream.set_epoch(0, 5)
    assert _passes(stream) == [expected[5:]]


@pytest.mark.parametrize("workers", [0, 1])
def test_one_bad_image_too_many_is_an_error(tmp_path, workers):
    folder = _with_bad(tmp_path, {5: b"", 17: b""}, images_per_shard=200)
    message = (
        r"got 2 bad images, expected at most max_bad_images=1: images-000000\.tar: \d+: cannot be decoded: "
    )
    with pytest.raises(ValueError, match=message):
        _passes(_stream(folder, max_bad_images=1, batches_per_epoch=40), num_workers=workers)


def test_batch_of_bad_images_is_an_error(tmp_path):
    folder = _with_bad(tmp_path, dict.fromkeys(range(N), b"x"))
    with pytest.raises(ValueError, match="a batch of 5 triplets, each with a bad image"):
        list(_stream(folder, max_bad_images=N))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ((IMAGES[0].transpose(1, 2, 0), 0), "item 1: not enough values"),
        ((None, 0, 1.0), "item 1: got NoneType"),
        ((IMAGES[0].astype(float), 0, 1.0), "item 1: got float64 pixels"),
        ((b"x", None, 1.0), "item 1: 'NoneType' object cannot be interpreted as an integer"),
        ((b"x", 0.5, 1.0), "item 1: 'float' object"),
        ((b"x", 0, np.nan), "item 1: got relevance nan"),
        ((b"x", 0, -1.0), "item 1: got relevance -1.0"),
        ((b"x", 0, None), "item 1: got no relevance"),
        ((b"x", 0, 1.0, [np.inf]), "item 1: got a feature"),
    ],
)
def test_bad_items_of_a_callable_are_named(item, message):
    items = _part_items(0, 1)
    stream = _stream(lambda: [items[0], item, *items[2:]], batches_per_epoch=1)
    with pytest.raises(ValueError, match=f"got 1 bad images, expected at most max_bad_images=0: {message}"):
        list(stream)


def test_item_without_a_feature_is_bad_where_pairs_are_compared():
    stream = _stream(lambda: _part_items(0, 1), batches_per_epoch=1, pair_relevance=product)
    with pytest.raises(ValueError, match="item 0: got no feature"):
        list(stream)


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_shard_is_an_error_whatever_the_limit(folder, tmp_path, workers):
    shards = []
    for number, shard in enumerate(sorted(folder.glob("*.tar"))):
        shards.append(tmp_path / shard.name)
        content = shard.read_bytes()
        shards[-1].write_bytes(content[:2048] + b"\xff" * 512 + content[2560:] if number == 3 else content)
    stream = _stream(shards, max_bad_images=1000, batches_per_epoch=8)
    with pytest.raises(ValueError, match=r"images-000003\.tar: broken after"):
        _passes(stream, num_workers=workers)


def test_truncated_shard_is_refused_at_once(folder, tmp_path):
    (tmp_path / "s.tar").write_bytes((folder / "images-000000.tar").read_bytes()[:-10240])
    with pytest.raises(ValueError, match="cut short"):
        _stream(tmp_path / "s.tar", batches_per_epoch=1)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "a pass without a good image"),
        ([(image, 7, 1.0) for image, _, _ in _part_items(0, 1)], "got one class only"),
        ([(image, i, 1.0) for i, (image, _, _) in enumerate(_part_items(0, 1))], "none with two images"),
        ([(image, label, 0.0) for image, label, _ in _part_items(0, 1)], "for out-of-class negatives"),
        ([(IMAGES[0, 0, : 2 + i % 3], i % 2, 1.0) for i in range(40)], "item .* expected .* pass size"),
    ],
    ids=["empty", "one class", "singletons", "relevance 0", "sizes"],
)
def test_stream_without_triplets_is_an_error(items, message):
    with pytest.raises(ValueError, match=message):
        list(_stream(lambda: items, batches_per_epoch=3, byte_budget=10**6))


def test_rare_classes_are_waited_for():
    items = [(IMAGES[0].transpose(1, 2, 0), label, 1.0) for label in [0] * 300 + [1]]
    stream = _stream(lambda: items, batches_per_epoch=2, byte_budget=30 * OVERHEAD * 4)
    assert all((labels[2::3] == 1).all() for _, labels in stream)


def test_budget_too_small_is_an_error(folder):
    with pytest.raises(ValueError, match="byte_budget: got 5000 bytes a loader worker"):
        list(_stream(folder, byte_budget=5000))


# Arguments and PML


def test_it_is_an_iterable_dataset(folder):
    assert isinstance(_stream(folder), IterableDataset)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 4}, "batch_size: got 4, expected a multiple of 3"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"batch_size": 6.0}, r"batch_size: got 6\.0"),
        ({"byte_budget": 0}, "byte_budget: got 0"),
        ({"byte_budget": 1e9}, "byte_budget: got 1000000000.0, expected a whole number"),
        ({"out_of_class_ratio": 1.5}, "out_of_class_ratio: got 1.5"),
        ({"out_of_class_ratio": 0.2}, r"out_of_class_ratio: got 0\.2 without pair_relevance, expected 1\.0"),
        ({"relevance_threshold": 0.0}, "relevance_threshold: got 0.0"),
        ({"relevance_margin": -1.0}, "relevance_margin: got -1.0"),
        ({"weighting": "other"}, "weighting: got 'other'"),
        ({"max_trials": 0}, "max_trials: got 0"),
        ({"pair_relevance": "cosin"}, "kernel: got 'cosin'.*did you mean 'cosine'"),
        ({"pair_relevance": "gaussian"}, "bandwidth: got None"),
        ({"triplets_per_image": 0}, "triplets_per_image: got 0"),
        ({"triplets_per_image": np.nan}, "triplets_per_image: got nan"),
        ({"batches_per_epoch": 0}, "batches_per_epoch: got 0"),
        ({"size": 0}, "size: got 0"),
        ({"max_bad_images": -1}, "max_bad_images: got -1"),
        ({"seed": -1}, "seed: got -1"),
        ({"rank": 1}, "rank, world_size: got 1, None"),
        ({"rank": 2, "world_size": 2}, "rank: got 2, expected a whole number, at least 0 and below 2"),
    ],
)
def test_bad_arguments_are_refused(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        _stream(folder, **changes)


@pytest.mark.parametrize("source", [lambda: [], "shards"])
def test_epoch_of_a_source_of_unknown_length_must_be_given(folder, tmp_path, source):
    if source == "shards":
        source = tmp_path / "s.tar"
        source.write_bytes((folder / "images-000000.tar").read_bytes())
    with pytest.raises(ValueError, match="batches_per_epoch: got None for a source"):
        _stream(source)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda stream: stream.set_epoch(-1), "epoch: got -1"),
        (lambda stream: stream.set_epoch(0, 8), "start_batch: got 8, .* below 8"),
        (lambda stream: stream.state_dict(batches_consumed=1), "batches_consumed: got 1 without epoch"),
        (lambda stream: stream.state_dict(0, 9), "batches_consumed: got 9"),
        (lambda stream: stream.load_state_dict({}), "stream state: got no batch, batch_size"),
        (lambda stream: stream.load_state_dict(stream.state_dict() | {"seed": 4}), "seed: got 4, expected 3"),
        (
            lambda stream: stream.load_state_dict(stream.state_dict() | {"source_crc32": 4}),
            "source_crc32: got 4",
        ),
    ],
)
def test_bad_positions_are_refused(folder, call, message):
    with pytest.raises(ValueError, match=message):
        call(_stream(folder))


def test_pml_takes_the_packaged_triplets(folder):
    from pytorch_metric_learning.losses import TripletMarginLoss
    from pytorch_metric_learning.miners import EmbeddingsAlreadyPackagedAsTriplets

    images, labels = next(iter(DataLoader(_stream(folder), batch_size=None)))
    embeddings = images.flatten(1).float().requires_grad_()
    triplets = EmbeddingsAlreadyPackagedAsTriplets()(embeddings, labels)
    anchor, positive, negative = triplets
    assert (labels[anchor] == labels[positive]).all()
    assert (labels[anchor] != labels[negative]).all()
    TripletMarginLoss()(embeddings, labels, triplets).backward()


def test_list_of_images_is_a_stream_and_a_spent_iterator_is_refused():
    rng = np.random.default_rng(0)
    items = [(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8), index % 2, 1.0) for index in range(12)]
    stream = TripletStream(items, batch_size=6, byte_budget=10**6, batches_per_epoch=2)
    assert [images.shape for images, _ in stream] == [(6, 3, 8, 8)] * 2
    with pytest.raises(ValueError, match=r"source: got a list_iterator, expected .* read pass after pass"):
        TripletStream(iter(items), batch_size=6, byte_budget=10**6, batches_per_epoch=2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("triplets_per_image", None),
        ("triplets_per_image", "a"),
        ("out_of_class_ratio", None),
        ("exact", "no"),
    ],
)
def test_argument_of_another_type_is_a_value_error(name, value):
    with pytest.raises(ValueError, match=f"{name}: got"):
        TripletStream(list, batch_size=6, byte_budget=10**6, batches_per_epoch=2, **{name: value})
