"""What processes exchange, against what one process holds."""

from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import nn

from dr_plugin import distributed
from dr_plugin.experiments.recipe import RecipeError
from dr_plugin.reservoirs import ClassReservoirs, WeightedReservoir

from .processes import on_ranks


def test_alone_everything_is_as_it_was():
    rows = torch.arange(6.0).view(3, 2).requires_grad_()
    assert (distributed.rank(), distributed.world_size(), distributed.is_first()) == (0, 1, True)
    assert distributed.share(5) == slice(0, 5)
    assert distributed.gather_rows(rows) is rows
    assert distributed.averaged(rows) is rows
    assert distributed.from_first("x") == "x"
    assert distributed.from_all("x") == ["x"]
    module = nn.Linear(2, 1)
    assert distributed.in_parallel(module, torch.zeros(1, 2)) is module
    with distributed.joined(), distributed.first_here_goes_first():
        assert distributed.world_size() == 1


def shares_of(totals):
    return [distributed.share(total) for total in totals]


def test_shares_follow_one_another_and_differ_by_one_at_most():
    totals = [0, 1, 2, 3, 7, 9]
    found = on_ranks(3, shares_of, totals)
    for number, total in enumerate(totals):
        parts = [one[number] for one in found]
        assert [row for part in parts for row in range(total)[part]] == list(range(total))
        sizes = [len(range(total)[part]) for part in parts]
        assert max(sizes) - min(sizes) <= 1


def gathered(sizes, asked, dtype):
    """The joined rows, and the gradient of a loss of them with respect to this process's."""
    generator = torch.Generator().manual_seed(distributed.rank())
    rows = torch.rand(sizes[distributed.rank()], 2, generator=generator).to(dtype).requires_grad_()
    joined = distributed.gather_rows(rows, None if asked else sizes)
    weights = torch.arange(joined.numel(), dtype=dtype).view_as(joined)
    (joined * weights).sum().backward()
    return rows.detach(), joined.detach(), rows.grad


@pytest.mark.parametrize("sizes", [[2, 2], [3, 1], [0, 2]])
@pytest.mark.parametrize("asked", [False, True])
def test_gathered_rows_stand_in_rank_order_and_own_gradients_count_for_all(sizes, asked):
    found = on_ranks(2, gathered, sizes, asked, torch.float32)
    whole = torch.cat([rows for rows, _, _ in found])
    weights = torch.arange(whole.numel(), dtype=torch.float32).view_as(whole)
    for (_, joined, gradient), expected in zip(found, weights.split(sizes), strict=True):
        assert torch.equal(joined, whole)
        assert torch.equal(gradient, 2 * expected)  # the mean over 2 processes is the gradient of one


def exchanged():
    rank = distributed.rank()
    linear = nn.Linear(2, 1)
    linear.weight.grad = torch.full((1, 2), float(rank))
    linear.bias.grad = torch.full((1,), 10.0 * rank)
    distributed.average_gradients(linear.parameters())
    norm = nn.BatchNorm1d(1)
    norm.running_mean.fill_(rank)
    norm.num_batches_tracked.fill_(rank + 5)
    distributed.take_from_first(norm)
    return {
        "averaged": float(distributed.averaged(torch.tensor(float(rank)))),
        "gradients": [linear.weight.grad.tolist(), linear.bias.grad.tolist()],
        "buffers": [float(norm.running_mean), int(norm.num_batches_tracked)],
        "first": distributed.from_first({"rank": rank}),
        "all": distributed.from_all(rank),
    }


def test_what_is_exchanged_is_the_same_on_all():
    found = on_ranks(3, exchanged)
    assert found[0] == found[1] == found[2]
    assert found[0] == {
        "averaged": 1.0,
        "gradients": [[[1.0, 1.0]], [10.0]],
        "buffers": [0.0, 5],
        "first": {"rank": 0},
        "all": [0, 1, 2],
    }


class Idle(nn.Module):
    """One of its layers is used."""

    def __init__(self):
        super().__init__()
        self.used, self.idle, self.norm = nn.Linear(2, 1), nn.Linear(2, 1), nn.BatchNorm1d(1)

    def forward(self, x):
        return self.norm(self.used(x))


def trained_idle():
    torch.manual_seed(0)
    module = Idle()
    parallel = distributed.in_parallel(module, torch.zeros(2, 2))
    counted = int(module.norm.num_batches_tracked)
    for _ in range(3):
        parallel(torch.full((2, 2), float(distributed.rank())) + torch.eye(2)).square().sum().backward()
    frozen = nn.Linear(2, 1).requires_grad_(False)
    return counted, module.training, module.idle.weight.grad, distributed.in_parallel(frozen, None) is frozen


def test_weights_that_the_loss_does_not_reach_hold_up_nobody():
    assert on_ranks(2, trained_idle) == [(0, True, None, True)] * 2


def fails_on_first():
    def action():
        raise RecipeError("one: got 1", "two: got 2")

    with pytest.raises(RecipeError) as caught:
        distributed.done_by_first(action)
    return (
        caught.value.lines,
        distributed.done_by_first(distributed.rank),
        distributed.any_of(distributed.rank() == 1),
    )


def test_what_the_first_does_is_known_to_all_and_so_is_its_failure():
    assert on_ranks(2, fails_on_first) == [(["one: got 1", "two: got 2"], 0, True)] * 2
    assert distributed.done_by_first(lambda: 3) == 3
    assert [distributed.any_of(asked) for asked in (True, False)] == [True, False]


def mis_sized():
    with pytest.raises(ValueError, match="sizes: got 3 for rank"):
        distributed.gather_rows(torch.zeros(2, 1), [3, 3])
    assert distributed.sizes_of(torch.zeros(distributed.rank(), 2)) == [0, 1]
    distributed.check_group()


def test_sizes_are_checked():
    on_ranks(2, mis_sized)


def leave_a_file(folder):
    path = folder / "file"
    with distributed.first_here_goes_first():
        found = path.exists()
        path.write_text("x")
    return found


def test_first_of_a_machine_goes_first(tmp_path):
    assert on_ranks(3, leave_a_file, tmp_path) == [False, True, True]


WEIGHTS = [1.0, 2.0, 4.0, 1.0, 3.0, 5.0]  # of items 0 to 5, every third of which a process streams


def held_by_all(trials):
    """The sets that merged reservoirs of capacity 2 hold, and the first draw of each."""
    rank, found = distributed.rank(), []
    own = np.arange(rank, 6, 3)
    for trial in range(trials):
        reservoir = WeightedReservoir(2, seed=(trial, rank))
        reservoir.extend(own, np.array(WEIGHTS)[own])
        merged = distributed.merged(reservoir)
        assert len(reservoir) == 2
        drawn, exact = merged.draw(1)
        assert exact.all()
        found.append((tuple(sorted(merged.items.tolist())), int(drawn[0])))
    return found


def test_merged_reservoirs_follow_the_law_of_one_stream():
    found = on_ranks(3, held_by_all, 1500)
    assert found[0] == found[1] == found[2]
    total, law = sum(WEIGHTS), {}
    for i, first in enumerate(WEIGHTS):
        for j, second in enumerate(WEIGHTS):
            if i != j:  # drawn one after the other without replacement
                pair = tuple(sorted((i, j)))
                law[pair] = law.get(pair, 0) + first / total * second / (total - first)
    sets = Counter(pair for pair, _ in found[0])
    observed = [sets[pair] for pair in law]
    assert chisquare(observed, [1500 * p for p in law.values()]).pvalue > 1e-3
    draws = Counter(item for _, item in found[0])
    assert chisquare([draws[i] for i in range(6)], [1500 * w / total for w in WEIGHTS]).pvalue > 1e-3


def classes_of_all():
    rank = distributed.rank()
    reservoirs = ClassReservoirs(2, seed=(1, rank))
    reservoirs.extend([3 * rank, 3 * rank + 1, 3 * rank + 2], [rank, rank, 2], [1.0, 2.0, 3.0])
    merged = distributed.merged(reservoirs)
    return merged.counts.tolist(), merged.totals.tolist(), sorted(merged.held(2).tolist())


def test_merged_class_reservoirs_know_the_classes_of_all():
    found = on_ranks(2, classes_of_all)
    assert found == [([2, 2, 2], [3.0, 3.0, 6.0], [2, 5])] * 2


def merge_of_one_seed():
    with pytest.raises(ValueError, match="merge: got two reservoirs of the same seed"):
        distributed.merged(WeightedReservoir(2, seed=1))


def test_merge_of_reservoirs_with_one_seed_is_refused():
    on_ranks(2, merge_of_one_seed)


def test_processes_of_a_test_can_fail():
    with pytest.raises(AssertionError, match="rank 0"):
        on_ranks(2, np.load, "/nowhere")
