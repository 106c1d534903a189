"""ClassReservoirs.keep and resize: buffers whose sizes follow a budget keep the law, and know when draws are exact."""

import numpy as np
import pytest

from dr_plugin.reservoirs import ClassReservoirs


def _filled(capacity, classes=3, count=12, seed=0):
    reservoirs = ClassReservoirs(capacity, classes, seed=seed)
    items = np.arange(count * classes)
    reservoirs.extend(items, items % classes, 1.0 + items)
    return reservoirs


def test_keep_loses_the_smallest_keys_and_names_them():
    reservoirs = _filled(12)
    before = [reservoirs.held(label).tolist() for label in range(3)]
    weights = [reservoirs.weights_of(label).tolist() for label in range(3)]
    lost = reservoirs.keep([5, 0, 99])
    assert sorted(lost) == sorted(before[0][5:] + before[1])
    assert [reservoirs.held(label).tolist() for label in range(3)] == [before[0][:5], [], before[2]]
    assert reservoirs.weights_of(0).tolist() == weights[0][:5]
    assert reservoirs.sizes.tolist() == [5, 0, 12]
    assert reservoirs.counts.tolist() == [12, 12, 12]


def test_kept_items_and_draws_are_those_of_smaller_reservoirs():
    counts = np.zeros((2, 36))
    exact = np.zeros((2, 400))
    for seed in range(400):
        small, shrunk = _filled(4, seed=seed), _filled(12, seed=seed)
        shrunk.keep([4, 4, 4])
        for row, reservoirs in enumerate((small, shrunk)):
            counts[row, reservoirs.held(0)] += 1
            exact[row, seed] = reservoirs.draw([0] * 8)[1].sum()
    assert abs(counts[0] - counts[1]).max() < 5 * np.sqrt(400 * 0.5 * 2)
    assert exact[0].mean() == pytest.approx(exact[1].mean(), abs=4 * exact.std() / 20)
    assert exact[1].mean() < 8


def test_draws_are_exact_up_to_the_earliest_lost_arrival():
    for seed in range(50):
        reservoirs, whole = _filled(12, seed=seed), _filled(12, seed=seed)
        order = whole.held(0)
        reservoirs.keep([3, 3, 3])
        items, exact = reservoirs.draw([0] * 40)
        assert exact[0]
        assert (np.diff(exact.astype(int)) <= 0).all()
        assert set(items) <= set(order[:3].tolist())


def test_resize_changes_nothing_that_is_held():
    reservoirs = _filled(12)
    expected = [reservoirs.held(label).tolist() for label in range(3)], reservoirs.log_keys_of(1).tolist()
    for capacity in (50, 12):
        reservoirs.resize(capacity)
        assert reservoirs.capacity == capacity
        assert (
            [reservoirs.held(label).tolist() for label in range(3)],
            reservoirs.log_keys_of(1).tolist(),
        ) == expected
    reservoirs.resize(50)
    more = np.arange(100, 220)
    reservoirs.extend(more, more % 3, np.ones(120))
    assert reservoirs.sizes.tolist() == [50, 50, 50]
    assert reservoirs.draw([0] * 5)[1].all()


def test_refreshed_items_come_back_after_being_lost():
    reservoirs = _filled(12)
    reservoirs.keep([0, 12, 12])
    reservoirs.new_pass()
    items = np.arange(36)
    reservoirs.refresh(items, items % 3, 1.0 + items)
    reservoirs.new_pass()
    assert sorted(reservoirs.held(0)) == list(range(0, 36, 3))
    assert reservoirs.draw([0] * 100)[1].all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda reservoirs: reservoirs.resize(11), "capacity: got 11, expected a whole number, at least 12"),
        (
            lambda reservoirs: reservoirs.resize(10**8),
            "capacity: got 100000000 for 3 classes, expected at most",
        ),
        (
            lambda reservoirs: reservoirs.keep([1, 2]),
            r"sizes: got \[1, 2\], expected a number, at least 0, for each of 3",
        ),
        (lambda reservoirs: reservoirs.keep([1, 2, -1]), r"sizes: got \[1, 2, -1\]"),
        (lambda reservoirs: reservoirs.keep([1.0, 2, 3]), "sizes: got float64"),
    ],
)
def test_bad_sizes_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(_filled(12))
