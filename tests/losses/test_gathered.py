"""GatheredLoss on several processes against one process, and against PML's wrappers."""

import pytest
import torch
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper, DistributedMinerWrapper
from torch.nn.parallel import DistributedDataParallel

from dr_plugin import distributed
from dr_plugin.losses import DeepRankingLoss, GatheredLoss, PDDMLoss, ReservoirMemory
from dr_plugin.miners import HardQuadrupletMiner, UniformTripletMiner

from ..processes import on_ranks

SIZES = {2: [5, 7], 3: [4, 1, 7]}


def whole():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(12, 6, generator=generator)
    return images, torch.arange(12) % 3


def pddm():
    loss = PDDMLoss(4)
    return loss, HardQuadrupletMiner(loss.unit)


CASES = {
    "a random miner": lambda: (DeepRankingLoss(0.2), UniformTripletMiner(4, seed=1)),
    "all triplets": lambda: (DeepRankingLoss(0.2), None),
    "a unit": pddm,
    "proxies": lambda: (losses.ProxyAnchorLoss(3, 4), None),
    "a memory": lambda: (ReservoirMemory(losses.ContrastiveLoss(), 4, 3, seed=2), None),
    "PML's miner": lambda: (losses.TripletMarginLoss(), miners.BatchHardMiner()),
}


def step(case, sizes=None):
    """Loss and gradients, on this process's rows."""
    torch.manual_seed(0)
    trunk = torch.nn.Linear(6, 4)
    loss, miner = CASES[case]()
    images, labels = whole()
    if sizes is not None:
        images, labels = (one.split(sizes)[distributed.rank()] for one in (images, labels))
    forward = trunk if sizes is None else DistributedDataParallel(trunk)
    gathered = GatheredLoss(loss, miner)
    gathered(forward(images).detach(), labels)  # fills a memory
    value = gathered(forward(images), labels)
    value.backward()
    gradients = [one.grad for one in (*trunk.parameters(), *loss.parameters())]
    return float(value.detach()), [None if one is None else one.clone() for one in gradients]


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_are_those_of_one_process(case, count):
    value, gradients = step(case)
    for own, found in on_ranks(count, step, case, SIZES[count]):
        assert own == pytest.approx(value, rel=1e-5)
        for one, other in zip(gradients, found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def of_pml():
    """The losses of a random miner in PML's wrappers, and the order of the rows in ours."""
    images, labels = (one.split([6, 6])[distributed.rank()] for one in whole())
    miner = DistributedMinerWrapper(UniformTripletMiner(4, seed=1))
    pml = DistributedLossWrapper(DeepRankingLoss(0.2))(images, labels, miner(images, labels))
    ours = GatheredLoss(DeepRankingLoss(0.2), UniformTripletMiner(4, seed=1))(images, labels)
    return float(pml), float(ours)


def test_random_miner_differs_between_processes_in_pmls_wrappers_and_not_in_ours():
    (pml, ours), (other_pml, other_ours) = on_ranks(2, of_pml)
    assert pml != pytest.approx(other_pml, rel=1e-3)
    assert ours == other_ours


def test_indices_of_one_process_are_refused():
    with pytest.raises(ValueError, match="indices_tuple: got one, expected None"):
        GatheredLoss(DeepRankingLoss(0.2))(*whole(), (torch.tensor([0]),) * 3)


def test_alone_it_is_the_loss_itself():
    images, labels = whole()
    loss = DeepRankingLoss(0.2)
    assert torch.equal(GatheredLoss(loss)(images, labels), loss(images, labels))
