"""Small networks for small images and small machines; each maps (B, 3, H, W) to (B, F)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from dr_plugin.checks import check_choice, check_whole, check_wholes


def _checked_counts(name: str, values: object) -> list[int]:
    counts = check_wholes(name, values, minimum=1)
    if not counts:
        raise ValueError(f"{name}: got {values!r}, expected one or more integers, each at least 1")
    return counts


class SmallConvNet(nn.Sequential):
    """A plain network for tiny images (8 to 64 px): conv 3x3 - batch norm - ReLU stages, then global pooling.

    2x2 max-pooling between the stages; any image size works. The feature vector has ``channels[-1]`` numbers.

    Args:
        channels: Output channels of each stage.
    Shape:
        (B, 3, H, W) float -> (B, channels[-1]).
    Raises:
        ValueError: if channels is empty or holds anything but positive integers.
    Example:
        >>> SmallConvNet((16, 32))(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 32])
    """

    def __init__(self, channels: Sequence[int] = (32, 64)) -> None:
        channels = _checked_counts("channels", channels)
        layers: list[nn.Module] = []
        previous = 3
        for stage, width in enumerate(channels):
            if stage > 0:
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
            layers += [
                nn.Conv2d(previous, width, kernel_size=3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            previous = width
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


_STEMS: dict[str, Callable[[int], tuple[nn.Module, nn.Module]]] = {
    "standard": lambda width: (nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.MaxPool2d(3, 2, 1)),
    "strided": lambda width: (nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.Identity()),
    "small": lambda width: (nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.Identity()),
}


class SmallResNet(nn.Module):
    """A slim residual network on torchvision's ``BasicBlock``, for training at 64 px on a few CPU cores.

    torchvision's ResNet has a fixed width of 64 and four stages; here both are free. Stage k has
    ``width * 2**k`` channels and, after the first, halves the image.

    Args:
        layers: Blocks of each stage.
        width: Channels of the first stage.
        stem: "standard" (7x7 of stride 2, then max-pooling of stride 2), "strided" (3x3 of stride 2) or
            "small" (3x3 of stride 1): stage one sees a quarter, a half or all of the image's side.
    Shape:
        (B, 3, H, W) float -> (B, width * 2 ** (len(layers) - 1)).
    Raises:
        ValueError: if layers or width hold anything but positive integers, or the stem is unknown.
    Example:
        >>> SmallResNet((1, 1), width=8)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 16])
    """

    def __init__(
        self, layers: Sequence[int] = (1, 1, 1, 1), *, width: int = 64, stem: str = "standard"
    ) -> None:
        layers = _checked_counts("layers", layers)
        width = check_whole("width", width, minimum=1, below=2**31)
        check_choice("stem", stem, _STEMS)
        super().__init__()
        convolution, pool = _STEMS[stem](width)
        self.stem = nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True), pool)
        stages = [
            _stage(width * 2 ** max(k - 1, 0), width * 2**k, blocks, stride=1 if k == 0 else 2)
            for k, blocks in enumerate(layers)
        ]
        self.stages = nn.Sequential(*stages)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, F) of images (B, 3, H, W)."""
        return torch.flatten(nn.functional.adaptive_avg_pool2d(self.stages(self.stem(images)), 1), 1)


def _stage(channels_in: int, channels_out: int, blocks: int, stride: int) -> nn.Sequential:
    shortcut = None
    if stride != 1 or channels_in != channels_out:
        shortcut = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, kernel_size=1, stride=stride, bias=False),
            nn.BatchNorm2d(channels_out),
        )
    first = BasicBlock(channels_in, channels_out, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(channels_out, channels_out) for _ in range(blocks - 1)))
