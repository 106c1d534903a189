"""Groups of triplets that share text queries or images, and the hold-out of whole groups."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dr_plugin.datasets.triplet_hold_out import held_out
from dr_plugin.triplets.groups import triplet_groups


def _slow_groups(texts, images):
    """Merge until nothing changes."""
    groups = list(range(len(texts)))
    changed = True
    while changed:
        changed = False
        for a in range(len(texts)):
            for b in range(len(texts)):
                linked = texts[a] == texts[b] or set(images[a]) & set(images[b])
                if linked and groups[a] != groups[b]:
                    groups = [min(groups[a], groups[b]) if g in (groups[a], groups[b]) else g for g in groups]
                    changed = True
    return groups


TRIPLETS = st.lists(st.tuples(st.integers(0, 5), *[st.integers(0, 30)] * 3), min_size=1, max_size=12)


@given(TRIPLETS)
def test_groups_are_the_closure(rows):
    texts, images = [f"t{row[0]}" for row in rows], np.array([row[1:] for row in rows])
    groups, slow = triplet_groups(texts, images), _slow_groups(texts, images.tolist())
    assert sorted(set(groups.tolist())) == list(range(len(set(slow))))
    assert len(set(zip(groups.tolist(), slow, strict=True))) == len(set(slow))


@given(TRIPLETS, st.floats(0.01, 0.99), st.integers(0, 5))
def test_held_out_whole_groups_at_most_the_share(rows, fraction, seed):
    texts, images = [f"t{row[0]}" for row in rows], np.array([row[1:] for row in rows])
    groups = triplet_groups(texts, images)
    assume(len(set(groups.tolist())) > 1)
    out = held_out(groups, texts, fraction, seed)
    assert 0 < out.sum() < len(rows)
    assert not {texts[i] for i in np.flatnonzero(out)} & {texts[i] for i in np.flatnonzero(~out)}
    assert not set(images[out].flat) & set(images[~out].flat)
    sizes = {g: len({t for t, other in zip(texts, groups, strict=True) if other == g}) for g in set(groups)}
    wanted = max(1, round(fraction * len(set(texts))))
    held = len({texts[i] for i in np.flatnonzero(out)})
    assert held <= wanted or held == min(sizes.values())


def test_held_out_depends_on_the_seed_and_names_alone():
    texts, groups = [f"t{i}" for i in range(40)], np.arange(40)
    first = held_out(groups, texts, 0.25, 0)
    assert first.sum() == 10
    assert (held_out(groups[::-1], texts, 0.25, 0) == first).all()
    assert (held_out(groups, texts, 0.25, 1) != first).any()


def test_held_out_one_group():
    with pytest.raises(ValueError, match=r'split: got triplets that all share .*: use split="all"'):
        held_out(np.zeros(3, dtype=np.int64), ["a", "b", "b"], 0.5, 0)
