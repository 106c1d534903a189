"""torchvision's models with their classifier cut off, and the feature count."""

from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import get_model

from dr_plugin.trunks import DeepRankingTrunk
from dr_plugin.trunks.convnets import build_convnet, count_features


@pytest.mark.parametrize(
    ("name", "features"),
    [
        ("resnet18", 512),
        ("densenet121", 1024),
        ("googlenet", 1024),
        ("mobilenet_v3_small", 1024),
        ("mnasnet0_5", 1280),
        ("regnet_y_400mf", 440),
        ("efficientnet_b0", 1280),
    ],
)
def test_cut_layer_on_the_features_gives_the_whole_model(name, features):
    torch.manual_seed(0)
    whole = get_model(name, **({"init_weights": False} if name == "googlenet" else {})).eval()
    torch.manual_seed(0)
    convnet, dropped = build_convnet(name, input_size=64)
    convnet.eval()
    (weight_name,) = (n for n in dropped if n.endswith(".weight") and "aux" not in n)
    classifier = whole.get_submodule(weight_name.removesuffix(".weight"))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        vectors = convnet(images)
        assert vectors.shape == (1, features)
        torch.testing.assert_close(classifier(vectors), whole(images))


@pytest.mark.parametrize(
    ("name", "features"),
    [
        ("alexnet", 4096),
        ("vgg11", 4096),
        ("vgg11_bn", 4096),
        ("squeezenet1_1", 512),
        ("inception_v3", 2048),
        ("mobilenet_v2", 1280),
        ("shufflenet_v2_x0_5", 1024),
        ("resnet50", 2048),
        ("vit_b_32", 768),
        ("swin_t", 768),
        ("convnext_tiny", 768),
        ("maxvit_t", 512),
    ],
)
def test_every_family_gives_a_vector(name, features):
    with torch.device("meta"):
        convnet, dropped = build_convnet(name, input_size=224)
        assert count_features(convnet, 224) == features
    assert dropped
    assert not dropped & convnet.state_dict().keys()


@pytest.mark.parametrize("name", ["googlenet", "inception_v3", "mobilenet_v2", "efficientnet_b0"])
def test_dropout_of_the_cut_classifier_goes_with_it(name):
    with torch.device("meta"):
        convnet, _ = build_convnet(name, input_size=224)
    assert not [module for module in convnet.modules() if isinstance(module, nn.Dropout)]


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_training_gives_a_vector_too(name):
    with torch.device("meta"):
        convnet, _ = build_convnet(name, input_size=96)
        assert convnet.train()(torch.zeros(2, 3, 96, 96)).ndim == 2


def test_vision_transformer_is_built_for_the_image_size():
    with torch.device("meta"):
        trunk = DeepRankingTrunk("vit_b_32", embedding_size=4, input_size=64)
    assert trunk.convnet_features == 768


@pytest.mark.parametrize(("name", "side"), [("resnet18", 2), ("densenet121", 2)])
def test_small_stem_keeps_the_image_size(name, side):
    with torch.device("meta"):
        convnet, _ = build_convnet(name, input_size=16, stem="small")
        sizes = []
        last = convnet.layer4 if name == "resnet18" else convnet.features
        last.register_forward_hook(lambda _module, _args, out: sizes.append(out.shape[-1]))
        count_features(convnet, 16)
    first = next(module for module in convnet.modules() if isinstance(module, nn.Conv2d))
    assert (first.weight.shape, first.stride) == ((64, 3, 3, 3), (1, 1))
    assert sizes == [side]  # three halvings of 16, where the standard stem makes five


def test_small_stem_is_refused_where_it_is_not_defined():
    with pytest.raises(
        ValueError, match="convnet_stem: got 'small' for 'squeezenet1_1', expected 'standard'"
    ):
        build_convnet("squeezenet1_1", input_size=64, stem="small")


class Restless(nn.Module):
    """Draws a random number in every forward, and counts its calls in training mode."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3, momentum=None)
        self.frozen = nn.BatchNorm2d(3).eval()
        self.gradients = []

    def forward(self, images):
        self.gradients.append(torch.is_grad_enabled())
        return self.frozen(self.norm(images)).mean(dim=(2, 3)) + torch.rand(3)


def test_count_features_leaves_no_trace():
    module = Restless()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    assert count_features(module, 8) == 3
    assert torch.equal(torch.rand(2), expected)
    assert (module.training, module.norm.training, module.frozen.training) == (True, True, False)
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert module.gradients == [False]


def test_count_features_puts_the_modes_back_after_a_failure():
    module = nn.Sequential(nn.BatchNorm2d(3), nn.Linear(5, 5))
    with pytest.raises(ValueError, match="Sequential failed on a"):
        count_features(module, 8)
    assert module[0].training


def test_count_features_refuses_what_is_no_tensor():
    class Pair(nn.Module):
        def forward(self, images):
            return images, images

    with pytest.raises(ValueError, match=r"Pair: got tuple for one image, expected a tensor \(1, F\)"):
        count_features(Pair(), 8)


# --- ImageNet weights, through torchvision's own weights API -----------------------------------------------


@pytest.mark.parametrize("name", ["squeezenet1_1", "googlenet"])
def test_imagenet_weights_are_torchvisions_default(name, monkeypatch):
    arguments = {"aux_logits": True, "init_weights": False} if name == "googlenet" else {}
    pretrained = get_model(name, **arguments).state_dict()
    asked = []

    def download(url, *_args, **_kwargs):
        asked.append(url)
        return pretrained

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    trunk = DeepRankingTrunk(name, embedding_size=4, input_size=64, weights="imagenet")
    assert asked == [torchvision.models.get_model_weights(name).DEFAULT.url]
    loaded = trunk.convnet.state_dict()
    assert loaded.keys() == {n for n in pretrained if not n.startswith(("fc.", "classifier.", "aux"))}
    assert all(torch.equal(value, pretrained[n]) for n, value in loaded.items())


@pytest.mark.parametrize(
    "failure", [URLError("no route to host"), RuntimeError('invalid hash value (expected "b8a52dc0")')]
)
def test_failed_download_says_what_to_do(failure, monkeypatch):
    def download(*_args, **_kwargs):
        raise failure

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    with pytest.raises(OSError, match=r"could not fetch the weights of 'squeezenet1_1'.*give a local file"):
        build_convnet("squeezenet1_1", input_size=64, imagenet=True)


def test_imagenet_weights_refuse_the_small_stem():
    with pytest.raises(ValueError, match="weights='imagenet': got convnet_stem='small', expected 'standard'"):
        build_convnet("resnet18", input_size=64, stem="small", imagenet=True)


def test_imagenet_weights_refuse_a_vision_transformer_of_another_size():
    with pytest.raises(ValueError, match="'vit_b_32' cannot be built for input_size=64"):
        build_convnet("vit_b_32", input_size=64, imagenet=True)
