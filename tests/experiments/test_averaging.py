import copy

import pytest
import torch
from torch import nn

from dr_plugin.experiments.averaging import AveragedWeights


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def step(module):
    """Other weights and other running statistics."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))
    module(torch.randn(8, 3))


def test_average_equals_the_sum_written_out():
    module = net()
    average = AveragedWeights(module, 0.7)
    expected = None
    for n in range(12):
        step(module)
        average.update(module)
        now = {key: value.double() for key, value in module.state_dict().items()}
        keep = min(0.7, (1 + n) / (10 + n))
        expected = now if expected is None else {k: keep * expected[k] + (1 - keep) * now[k] for k in now}
    for key, value in average.module.state_dict().items():
        wanted = module.state_dict()[key].double() if key.endswith("num_batches_tracked") else expected[key]
        torch.testing.assert_close(value.double(), wanted, rtol=1e-5, atol=1e-6)


def test_first_update_takes_the_weights_whole():
    module = net()
    average = AveragedWeights(module, 0.99)
    step(module)
    average.update(module)
    assert all(
        torch.equal(a, b) for a, b in zip(average.module.parameters(), module.parameters(), strict=True)
    )


def test_average_needs_no_gradient_and_leaves_the_module_alone():
    module = net()
    before = copy.deepcopy(module.state_dict())
    AveragedWeights(module, 0.5).update(module)
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    assert not any(parameter.requires_grad for parameter in AveragedWeights(module, 0.5).module.parameters())


@pytest.mark.parametrize("stop", [1, 4])
def test_state_goes_on_to_the_same_average(stop):
    module = net()
    one = AveragedWeights(module, 0.9)
    for n in range(7):
        if n == stop:
            two = AveragedWeights(net(), 0.9)
            two.load_state_dict(copy.deepcopy(one.state_dict()))
        step(module)
        one.update(module)
        if n >= stop:
            two.update(module)
    for key, value in one.module.state_dict().items():
        assert torch.equal(value, two.module.state_dict()[key])
