"""The settings of an index: defaults that fit any gallery, numpy's integers, and what is refused."""

import numpy as np
import pytest

from dr_plugin.metrics.index_settings import IMAGES_A_LIST, index_settings


@pytest.mark.parametrize(
    ("size", "lists", "probes"),
    [(1, 1, 1), (77, 1, 1), (78, 2, 2), (10_000, 256, 16), (1_000_000, 4000, 250)],
)
def test_lists_and_probes_by_hand(size, lists, probes):
    assert index_settings("ivf", size, 0, {}) == {"lists": lists, "probes": probes}


def test_defaults_fit_every_gallery():
    for size in range(1, 3000):
        values = index_settings("ivf", size, 0, {})
        assert 1 <= values["probes"] <= values["lists"] <= max(1, size // IMAGES_A_LIST)


def test_given_settings_are_kept_and_the_rest_is_default():
    assert index_settings("hnsw", 9, 0, {"links": 5}) == {
        "links": 5,
        "build_effort": 100,
        "search_effort": 128,
    }
    assert index_settings("ivf", 10_000, 0, {"lists": 200}) == {"lists": 200, "probes": 12}
    assert index_settings("ivf", 10_000, 0, {"lists": 4}) == {"lists": 4, "probes": 4}
    assert index_settings("flat", 9, 0, {}) == {}


def test_numpy_integers_become_ints():
    values = index_settings("ivf", 10_000, np.int64(3), {"lists": np.int64(8), "probes": np.uint8(2)})
    assert values == {"lists": 8, "probes": 2}
    assert [type(value) for value in values.values()] == [int, int]


@pytest.mark.parametrize(
    ("kind", "given", "seed", "match"),
    [
        ("pq", {}, 0, "kind='pq', expected 'flat', 'ivf' or 'hnsw'"),
        ("ivf", {"probe": 3}, 0, "probe=3 for kind='ivf', expected one of .*: did you mean probes?"),
        ("flat", {"lists": 3}, 0, "lists=3 for kind='flat', expected one of no settings"),
        ("ivf", {"lists": 0}, 0, "lists: got 0, expected a whole number, at least 1"),
        ("ivf", {"lists": True}, 0, "lists: got True"),
        ("hnsw", {"links": 2.0}, 0, "links: got 2.0"),
        ("hnsw", {"links": 1}, 0, "links=1, expected at least 2"),
        ("ivf", {"lists": 3}, 0, "lists=3 for 100 images, expected at most 2"),
        ("ivf", {"probes": 3}, 0, "probes=3, expected at most the 2 lists"),
        ("flat", {}, -1, "seed: got -1, expected a whole number, at least 0 and below 2147483648"),
        ("flat", {}, 2**31, "seed: got 2147483648"),
        ("flat", {}, None, "seed: got None"),
    ],
)
def test_bad_settings_are_refused(kind, given, seed, match):
    with pytest.raises(ValueError, match=match):
        index_settings(kind, 100, seed, given)
