"""The small networks against plain functional versions."""

import doctest

import pytest
import torch
from torch.nn import functional as F
from torchvision.models import resnet18

from dr_plugin.trunks import SmallConvNet, SmallResNet, small


@pytest.mark.parametrize("size", [1, 8, 15])
def test_small_convnet_equals_functional_version(size):
    net = SmallConvNet((4, 6, 5)).eval()
    images = torch.randn(2, 3, size, size)
    maps = images
    for stage, (convolution, norm) in enumerate([(0, 1), (4, 5), (8, 9)]):
        if stage > 0:
            maps = F.max_pool2d(maps, 2, ceil_mode=True)
        maps = F.conv2d(maps, net[convolution].weight, padding=1)
        maps = F.relu(maps / (1 + net[norm].eps) ** 0.5)  # fresh running statistics: mean 0, variance 1
    torch.testing.assert_close(net(images), maps.mean(dim=(2, 3)))


def test_small_resnet_can_be_torchvisions_resnet18():
    reference = resnet18().eval()
    net = SmallResNet((2, 2, 2, 2), width=64, stem="standard").eval()
    weights = [v for n, v in reference.state_dict().items() if not n.startswith("fc.")]
    net.load_state_dict(dict(zip(net.state_dict(), weights, strict=True)))
    images = torch.randn(1, 3, 64, 64)
    reference.fc = torch.nn.Identity()
    torch.testing.assert_close(net(images), reference(images))


@pytest.mark.parametrize(("stem", "side"), [("standard", 8), ("strided", 16), ("small", 32)])
def test_small_resnet_stem_sets_the_size_of_stage_one(stem, side):
    net = SmallResNet((1, 1), width=4, stem=stem)
    sizes = []
    for stage in net.stages:
        stage.register_forward_hook(lambda _module, _args, out: sizes.append(tuple(out.shape[1:])))
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 8)
    assert sizes == [(4, side, side), (8, side // 2, side // 2)]


@pytest.mark.parametrize("channels", [(), (8, 0), (8, 2.0), "32", (True,), 32])
def test_small_convnet_refuses_bad_channels(channels):
    with pytest.raises(ValueError, match=r"channels: got .*, expected .*(integers|whole number)"):
        SmallConvNet(channels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": ()}, r"layers: got \(\)"),
        ({"layers": (1, -1)}, "layers: got -1"),
        ({"width": 0}, "width: got 0"),
        ({"stem": "tiny"}, "stem: got 'tiny', expected one of standard, strided, small"),
    ],
)
def test_small_resnet_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SmallResNet(**arguments)


def test_examples_in_docstrings():
    result = doctest.testmod(small, extraglobs={"torch": torch})
    assert result.attempted == 2
    assert result.failed == 0
