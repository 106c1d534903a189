"""torchvision's classification models as networks that give a feature vector."""

import difflib
import pickle
from collections import OrderedDict
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models import DenseNet, GoogLeNet, Inception3, ResNet, get_model, list_models

CONVNET_STEMS = ("standard", "small")

# Where the first convolution and its max-pooling are, for the families that have a small-image stem.
_STEM_LAYERS = {ResNet: ("conv1", "maxpool"), DenseNet: ("features.conv0", "features.pool0")}
# GoogLeNet's and Inception's classifiers on the way, which only training uses.
_SIDE_CLASSIFIERS = ("aux1", "aux2", "AuxLogits")


def build_convnet(
    name: str, *, input_size: int, stem: str = "standard", dropout: float = 0.4, imagenet: bool = False
) -> tuple[nn.Module, frozenset[str]]:
    """Build torchvision's classification model ``name`` without its final classifier.

    Args:
        name: A name of ``torchvision.models.list_models(module=torchvision.models)``.
        input_size: Height and width of the images, which vision transformers are built for.
        stem: "small" replaces the first layers by a 3x3 convolution of stride 1 without max-pooling.
        dropout: Drop probability between the fully connected layers that stay (AlexNet, VGG, MobileNetV3).
        imagenet: Load torchvision's default ImageNet weights.

    Returns:
        The network, (B, 3, S, S) -> (B, F), and the state dict names that went with the classifier.

    Raises:
        ValueError: if the name or the stem is unknown, or the model cannot be had with them.
        OSError: if the ImageNet weights cannot be fetched.
    """
    known = list_models(module=torchvision.models)
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"convnet: got {name!r}, expected the name of a torchvision classification model or an "
            f"nn.Module that gives (B, F) (did you mean {near!r}?)"
        )
    if imagenet and stem != "standard":
        raise ValueError(
            f"weights='imagenet': got convnet_stem={stem!r}, expected 'standard': ImageNet weights hold the "
            "standard stem's filters; drop one of the two"
        )
    convnet = _create(name, input_size, imagenet)
    if stem == "small":
        _use_small_stem(convnet, name)
    return convnet, _cut_classifier(convnet, dropout)


def _create(name: str, input_size: int, imagenet: bool) -> nn.Module:
    arguments: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3") and not imagenet:
        arguments["init_weights"] = False  # torchvision warns unless one of the two is chosen
    if name.startswith("vit_"):
        arguments["image_size"] = input_size
    try:
        if imagenet:
            arguments.update(weights="DEFAULT", progress=False)
        network: nn.Module = get_model(name, **arguments)
    except (AssertionError, ValueError) as error:  # a vision transformer and a size that it cannot have
        raise ValueError(f"convnet {name!r} cannot be built for input_size={input_size}: {error}") from error
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        if not imagenet:
            raise
        raise OSError(
            f"weights='imagenet': could not fetch the weights of {name!r} ({error}); expected a network "
            f"connection or the file in {torch.hub.get_dir()}/checkpoints; or give a local file as weights"
        ) from error
    return network


def _use_small_stem(convnet: nn.Module, name: str) -> None:
    """Put a 3x3 convolution of stride 1 in the place of the first convolution and its max-pooling."""
    layers = _STEM_LAYERS.get(type(convnet))
    if layers is None:
        raise ValueError(
            f"convnet_stem: got 'small' for {name!r}, expected 'standard'; the small stem is defined for "
            "torchvision's ResNet, ResNeXt, Wide ResNet and DenseNet models"
        )
    convolution_name, pool_name = layers
    first = convnet.get_submodule(convolution_name)
    convolution = nn.Conv2d(3, int(first.out_channels), kernel_size=3, padding=1, bias=False)  # type: ignore[arg-type]
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    convnet.set_submodule(convolution_name, convolution)
    convnet.set_submodule(pool_name, nn.Identity())


def _cut_classifier(convnet: nn.Module, dropout: float) -> frozenset[str]:
    """Take the last layer with weights, and the dropout in front of it, out of the head, in place.

    What torchvision has after that layer stays (SqueezeNet pools there), and so do all other names.
    Classifiers on the way go too: with them the output is a tuple while training.
    """
    before = convnet.state_dict().keys()
    head_name = next(name for name in ("fc", "classifier", "heads", "head") if hasattr(convnet, name))
    head = convnet.get_submodule(head_name)
    if isinstance(head, nn.Sequential):
        layers = list(head.named_children())
        last = max(i for i, (_, layer) in enumerate(layers) if isinstance(layer, nn.Linear | nn.Conv2d))
        first = last
        while first > 0 and isinstance(layers[first - 1][1], nn.Dropout):
            first -= 1
        kept: nn.Module = nn.Sequential(OrderedDict(layers[:first] + layers[last + 1 :]))
    else:
        kept = nn.Identity()
    for layer in kept.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = dropout
    setattr(convnet, head_name, kept)
    if isinstance(convnet, GoogLeNet | Inception3):
        convnet.aux_logits = False
        convnet.dropout = nn.Identity()  # in front of the classifier, but not in its head
        for name in _SIDE_CLASSIFIERS:
            if hasattr(convnet, name):
                setattr(convnet, name, None)
    return frozenset(before - convnet.state_dict().keys())


def count_features(convnet: nn.Module, input_size: int) -> int:
    """F of a network that maps (B, 3, S, S) to (B, F), found by running it on one black image.

    The run leaves no trace: evaluation mode (put back afterwards, module by module), no gradient, and the
    random state as it was.

    Raises:
        ValueError: if the network cannot take the size, or does not give one vector an image.
    """
    name = type(convnet).__name__
    like = next((p for p in convnet.parameters() if p.is_floating_point()), torch.empty(0))
    modes = [(module, module.training) for module in convnet.modules()]
    convnet.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng([like.device] if like.is_cuda else []):
            images = torch.zeros(1, 3, input_size, input_size, device=like.device, dtype=like.dtype)
            features = convnet(images)
    except Exception as error:  # each network has its own way to refuse a size
        raise ValueError(
            f"convnet {name} failed on a (1, 3, {input_size}, {input_size}) input: {error}; "
            "change input_size, or choose a ConvNet made for this size"
        ) from error
    finally:
        for module, mode in modes:
            module.training = mode
    if not isinstance(features, torch.Tensor) or features.ndim != 2 or features.shape[0] != 1:
        got = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
        raise ValueError(
            f"convnet {name}: got {got} for one image, expected a tensor (1, F); "
            "pool and flatten at the end of the network"
        )
    return int(features.shape[1])
