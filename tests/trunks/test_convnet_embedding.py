"""The ConvNet alone as an embedding, and a ranking trunk that starts from its weights."""

import pytest
import torch
from torch import nn

from dr_plugin.trunks import ConvNetEmbedding, DeepRankingTrunk, SmallConvNet


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_are_the_convnets_at_unit_length(dtype):
    convnet = SmallConvNet((4, 8)).to(dtype).eval()
    images = torch.rand(3, 3, 16, 16).to(dtype)
    embeddings = ConvNetEmbedding(convnet, input_size=16)(images)
    features = convnet(images).float()
    torch.testing.assert_close(embeddings, features / features.norm(dim=1, keepdim=True))
    assert embeddings.dtype == torch.float32


def test_features_that_are_all_zero_stay_zero():
    class Zero(nn.Module):
        def forward(self, images):
            return images.new_zeros(len(images), 4)

    assert not ConvNetEmbedding(Zero())(torch.rand(2, 3, 8, 8)).any()


def test_named_convnet_loses_its_classifier():
    embedding = ConvNetEmbedding("resnet18", input_size=32, convnet_stem="small").eval()
    assert embedding(torch.rand(1, 3, 32, 32)).shape == (1, 512)


@pytest.mark.parametrize("low_resolution", [True, False])
@pytest.mark.parametrize("as_checkpoint", [True, False])
def test_a_ranking_trunk_starts_from_its_weights(tmp_path, low_resolution, as_checkpoint):
    source = ConvNetEmbedding(SmallConvNet((4, 8)))
    state = source.state_dict()
    torch.save({"format": 1, "models": {"trunk": state}} if as_checkpoint else state, tmp_path / "best.pt")
    trunk = DeepRankingTrunk(
        SmallConvNet((4, 8)),
        embedding_size=6,
        input_size=16,
        weights=tmp_path / "best.pt",
        low_resolution=low_resolution,
    )
    for name, value in source.convnet.state_dict().items():
        assert torch.equal(trunk.convnet.state_dict()[name], value)


def test_it_loads_its_own_weights(tmp_path):
    source = ConvNetEmbedding(SmallConvNet((4, 8)))
    torch.save(source.state_dict(), tmp_path / "best.pt")
    other = ConvNetEmbedding(SmallConvNet((4, 8)), weights=tmp_path / "best.pt")
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(source.eval()(images), other.eval()(images))


def test_weights_of_another_convnet_are_refused_whole(tmp_path):
    torch.save(ConvNetEmbedding(SmallConvNet((4, 9))).state_dict(), tmp_path / "best.pt")
    with pytest.raises(ValueError, match="does not fit the ConvNet SmallConvNet; nothing was loaded"):
        DeepRankingTrunk(SmallConvNet((4, 8)), embedding_size=6, input_size=16, weights=tmp_path / "best.pt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"convnet": 3}, "convnet: got 3, expected a torchvision model's name or an nn.Module"),
        ({"convnet": "resnet1"}, "did you mean"),
        ({"convnet": SmallConvNet(), "weights": "imagenet"}, "both change only a ConvNet given by name"),
        ({"convnet": SmallConvNet(), "convnet_stem": "small"}, "both change only a ConvNet given by name"),
        ({"convnet": nn.Identity(), "input_size": 8}, "convnet Identity"),
    ],
)
def test_bad_arguments_are_one_clear_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        ConvNetEmbedding(**arguments)
