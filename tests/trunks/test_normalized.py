"""The trunk with its images' normalisation in front, against the definition, and its state dict."""

import doctest

import pytest
import torch
from torch import nn

from dr_plugin.trunks import DeepRankingTrunk, NormalizedTrunk, SmallConvNet, normalized

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def images(count=3, size=16):
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)


def test_each_pixel_is_that_of_the_definition():
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3, 1).view(1, 3, 16, 16)
    found = NormalizedTrunk(nn.Identity(), MEAN, STD)(pixels)
    for colour in range(3):
        for value in (0, 1, 128, 255):
            expected = (value / 255 - MEAN[colour]) / STD[colour]
            assert found[0, colour].flatten()[value].item() == pytest.approx(expected, abs=1e-6)


def test_state_dict_brings_the_normalisation():
    trunk = DeepRankingTrunk(SmallConvNet((4,)), embedding_size=6, input_size=16)
    source = NormalizedTrunk(trunk, MEAN, STD).eval()
    other = NormalizedTrunk(DeepRankingTrunk(SmallConvNet((4,)), embedding_size=6, input_size=16)).eval()
    batch = images()
    with torch.no_grad():
        assert not torch.allclose(other(batch), source(batch))
        other.load_state_dict(source.state_dict())
        assert torch.equal(other(batch), source(batch))
    assert set(source.state_dict()) == {"mean", "std", *(f"trunk.{name}" for name in trunk.state_dict())}


def test_without_them_images_are_in_0_to_1():
    assert torch.equal(NormalizedTrunk(nn.Identity())(images()[:1] * 0 + 255), torch.ones(1, 3, 16, 16))


def test_embeddings_are_float32():
    class Half(nn.Module):
        def forward(self, batch):
            return batch.half()

    assert NormalizedTrunk(Half())(images()).dtype is torch.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mean": (0.5, 0.5)}, r"mean: got \(0.5, 0.5\), expected three finite numbers, one per channel"),
        ({"std": (1, 1, 0)}, r"std: got \(1.0, 1.0, 0.0\), expected positive numbers"),
        ({"std": (1, 1, float("nan"))}, "std: got"),
        ({"std": ()}, "std: got"),
    ],
)
def test_bad_normalisation_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        NormalizedTrunk(nn.Identity(), **settings)


def test_floats_are_refused():
    """Those in 0..1 and those already normalised cannot be told apart."""
    with pytest.raises(ValueError, match=r"images: got Tensor of torch.float32, .*expected uint8"):
        NormalizedTrunk(nn.Identity())(images().float())


def test_example():
    assert doctest.testmod(normalized, extraglobs={"nn": nn, "torch": torch}).failed == 0
