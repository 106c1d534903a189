"""The multiscale network of Deep Ranking (Wang et al., CVPR 2014, Fig. 3)."""

import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dr_plugin.checks import as_number, check_choice, check_flag, check_path, check_whole, check_wholes, shown
from dr_plugin.trunks.convnets import CONVNET_STEMS, build_convnet, count_features
from dr_plugin.trunks.weights import load_state, read_state


def l2_normalize(vectors: Tensor) -> Tensor:
    """Rows of (B, D) divided by their length, at least in float32 even under autocast; zero rows stay 0."""
    if vectors.dtype in (torch.float16, torch.bfloat16):
        vectors = vectors.float()
    return F.normalize(vectors, dim=1)


def pad_same(maps: Tensor, kernel: int, stride: int) -> Tensor:
    """Zero-pad (B, C, H, W) so that a window gives ceil(n / stride) places; an odd rest goes to the end."""
    height, width = (
        max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in (maps.shape[-2], maps.shape[-1])
    )
    return F.pad(maps, (width // 2, width - width // 2, height // 2, height - height // 2))


class LowResolutionPath(nn.Module):
    """One low-resolution path of Fig. 3: SubSample n:1, convolution 8x8 of stride 4 with ReLU, max-pooling.

    Every size is ceil(n / stride), "SAME" padding. SubSample, whose filter the paper does not give, is the
    mean over an n x n area; where n does not divide the image, over areas spread evenly across it.

    Args:
        subsample: n, by how much the image is made smaller.
        pool_kernel: Side of the max-pooling's window.
        pool_stride: Its stride.
        channels: Number of filters.
    Shape:
        (B, 3, S, S) -> (B, channels, s, s) with s = ceil(ceil(ceil(S / subsample) / 4) / pool_stride).
    """

    def __init__(self, subsample: int, pool_kernel: int, pool_stride: int, channels: int = 96) -> None:
        super().__init__()
        self.subsample = subsample
        self.convolution = nn.Conv2d(3, channels, kernel_size=8, stride=4)
        self.pool_kernel = pool_kernel
        self.pool_stride = pool_stride

    def forward(self, images: Tensor) -> Tensor:
        """Feature maps of the images."""
        height, width = images.shape[-2:]
        small = F.adaptive_avg_pool2d(images, (-(-height // self.subsample), -(-width // self.subsample)))
        maps = F.relu(self.convolution(pad_same(small, 8, 4)))
        # No map is negative, so padding with zero is padding with -infinity.
        padded = pad_same(maps, self.pool_kernel, self.pool_stride)
        return F.max_pool2d(padded, self.pool_kernel, self.pool_stride)

    def output_size(self, input_size: int) -> int:
        """S of the images -> s of the maps."""
        for stride in (self.subsample, 4, self.pool_stride):
            input_size = -(-input_size // stride)
        return input_size


class DeepRankingTrunk(nn.Module):
    """The multiscale network of Deep Ranking: image -> unit-length embedding.

    ::

        image -+- ConvNet ------------------------------------------------------- l2 -+
               +- SubSample 4:1 - conv 8x8, 4x4 - ReLU - max-pool 3x3 -+               +- linear - l2
               +- SubSample 8:1 - conv 8x8, 4x4 - ReLU - max-pool 7x7 -+- joint l2 ---+

    Sizes follow the input. At 225 px they are the paper's: 57, 15, 4 and 29, 8, 4 in the low-resolution
    paths, and 4096 + 2 x 4 x 4 x 96 = 7168 -> 4096 in the linear embedding. At 64 px nothing is scaled up:
    16, 4, 1 and 8, 2, 1.

    - An embedding that is exactly zero before the last normalisation stays zero; it never becomes NaN.
    - Normalisation is done, and the embedding given, in float32 under autocast too.

    Differs from the paper, or decides what it leaves open:

    - Fig. 3 prints pooling strides 2 and 4 for the paths 1 and 2, which contradict its printed sizes
      (15 -> 4 and 8 -> 4). The sizes are taken as the truth: strides 4 and 2. ``pool_strides=(2, 4)`` is the
      other reading.
    - Fig. 3 prints 3074 numbers for the joint low-resolution vector, a misprint of 2 x 4 x 4 x 96 = 3072.
    - The subsampling filter is not given: it is the mean over an area (see `LowResolutionPath`). It comes
      before the 8x8 convolution, whose receptive field on the image is thus 32 and 64 pixels.
    - torchvision's AlexNet is a later one than the paper's (64 first filters instead of 96, no local
      response normalisation).
    - The paper gives dropout's KEEP probability, 0.6; ``dropout`` is the probability to DROP, 0.4. It is
      applied to the input of the linear embedding, and between a named ConvNet's own fully connected layers.
    - The linear embedding's bias starts at zero: the inputs have unit length, and torch's default bias would
      be as large as the signal.

    Attributes:
        convnet: The ConvNet path, (B, 3, S, S) -> (B, ``convnet_features``), without normalisation.
        low_resolution: The low-resolution paths, none in the single-scale network.
        embedding: The linear embedding.

    Args:
        convnet: Name of a torchvision classification model, whose last layer is cut off (AlexNet and VGG give
            their 4096-d fc7, ResNet its pooled 512-d or 2048-d features), or a module that maps
            (B, 3, S, S) to (B, F), taken as it is and not copied.
        embedding_size: Length of the embedding, E.
        input_size: Height and width of the images, S.
        weights: None (random), "imagenet" (torchvision's, downloaded; only for a ConvNet given by name) or a
            local file; see `load_weights`.
        low_resolution: False leaves the paths out: the paper's single-scale ranking network.
        convnet_stem: "small" puts a 3x3 convolution of stride 1 and no max-pooling in the place of a
            ResNet's or DenseNet's first layers, for small images; only for a ConvNet given by name.
        dropout: Probability to drop, in [0, 1).
        pool_strides: Strides of the two paths' max-pooling.
    Shape:
        images (B, 3, S, S) float -> (B, E), rows of length 1.
    Raises:
        ValueError: if an argument is out of its range, the ConvNet is unknown, cannot take images of this
            size or gives no vector, or a file of weights does not fit.
        OSError: if the ImageNet weights cannot be fetched.
    Example:
        >>> trunk = DeepRankingTrunk("resnet18", embedding_size=128, input_size=64).eval()
        >>> trunk(torch.rand(2, 3, 64, 64)).norm(dim=1).round(decimals=4).tolist()
        [1.0, 1.0]

    References:
        Wang et al., Learning Fine-grained Image Similarity with Deep Ranking, CVPR 2014, sec. 4 and Fig. 3.
    """

    def __init__(
        self,
        convnet: str | nn.Module = "alexnet",
        *,
        embedding_size: int = 4096,
        input_size: int = 225,
        weights: str | os.PathLike[str] | None = None,
        low_resolution: bool = True,
        convnet_stem: str = "standard",
        dropout: float = 0.4,
        pool_strides: Sequence[int] = (4, 2),
    ) -> None:
        super().__init__()
        _check_arguments(convnet, embedding_size, input_size, weights, convnet_stem, dropout, pool_strides)
        dropout = float(dropout)
        state = None if weights is None or weights == "imagenet" else read_state(weights)
        self.input_size = input_size = int(input_size)  # numpy's might overflow
        self.embedding_size = embedding_size = int(embedding_size)
        pool_strides = check_wholes("pool_strides", pool_strides, minimum=1)
        low_resolution = check_flag("low_resolution", low_resolution)
        # Names that a ConvNet's file may hold beside ours: those of the classifier that was cut off.
        self.classifier_names: frozenset[str] = frozenset()
        if isinstance(convnet, str):
            convnet, self.classifier_names = build_convnet(
                convnet,
                input_size=input_size,
                stem=convnet_stem,
                dropout=dropout,
                imagenet=weights == "imagenet",
            )
        self.convnet = convnet
        self.convnet_features = count_features(convnet, input_size)
        paths = [LowResolutionPath(4, 3, pool_strides[0]), LowResolutionPath(8, 7, pool_strides[1])]
        self.low_resolution = nn.ModuleList(paths if low_resolution else [])
        joined = self.convnet_features
        if low_resolution:
            joined += sum(path.convolution.out_channels * path.output_size(input_size) ** 2 for path in paths)
        self.dropout = nn.Dropout(dropout)
        self.embedding = nn.Linear(joined, embedding_size)
        nn.init.zeros_(self.embedding.bias)
        if state is not None:
            load_state(self, state, source=str(weights))

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings (B, E), rows of length 1, of images (B, 3, S, S)."""
        size = self.input_size
        if not images.is_floating_point() or images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise ValueError(
                f"images: got {tuple(images.shape)} {images.dtype}, expected (B, 3, {size}, {size}) float; "
                "resize the images, or build the trunk with another input_size"
            )
        parts = [l2_normalize(self.convnet(images))]
        if len(self.low_resolution) > 0:
            maps = [path(images).flatten(1) for path in self.low_resolution]
            parts.append(l2_normalize(torch.cat(maps, dim=1)))  # one joint normalisation, not one a path
        joined = self.dropout(torch.cat(parts, dim=1))
        return l2_normalize(self.embedding(joined.to(self.embedding.weight.dtype)))

    def first_filters(self) -> dict[str, Tensor]:
        """The filters that look at the image, by path: "convnet", "low_resolution_1", "low_resolution_2".

        Each is (n, 3, h, w), detached; "convnet" is left out if its first convolution has not 3 channels.
        """
        filters = {}
        first = next((module for module in self.convnet.modules() if isinstance(module, nn.Conv2d)), None)
        if first is not None and first.weight.shape[1] == 3:
            filters["convnet"] = first.weight.detach()
        for number, path in enumerate(self.low_resolution, start=1):
            filters[f"low_resolution_{number}"] = path.get_parameter("convolution.weight").detach()
        return filters

    def extra_repr(self) -> str:
        """What the printed layers do not show."""
        return f"input_size={self.input_size}, embedding_size={self.embedding_size}"


def _check_arguments(
    convnet: object,
    embedding_size: object,
    input_size: object,
    weights: object,
    convnet_stem: object,
    dropout: object,
    pool_strides: object,
) -> None:
    """All that can be said before anything is built."""
    if not isinstance(convnet, str | nn.Module):
        raise ValueError(
            f"convnet: got {shown(convnet)}, expected a torchvision model's name or an nn.Module"
        )
    if not isinstance(pool_strides, list | tuple) or len(pool_strides) != 2:
        raise ValueError(f"pool_strides: got {shown(pool_strides)}, expected two integers, as (4, 2)")
    counts = {"embedding_size": embedding_size, "input_size": input_size}
    for name, value in counts.items():
        check_whole(name, value, minimum=1, below=2**31)
    if not 0 <= as_number(dropout) < 1:
        raise ValueError(f"dropout: got {shown(dropout)}, expected a probability to drop in [0, 1)")
    check_choice("convnet_stem", convnet_stem, CONVNET_STEMS)
    if weights is not None:
        check_path("weights", weights)
    if isinstance(convnet, nn.Module):
        if convnet_stem != "standard":
            raise ValueError(
                f"convnet_stem: got {convnet_stem!r} with an nn.Module, expected 'standard'; "
                "build the module with the stem that you want"
            )
        if weights == "imagenet":
            raise ValueError(
                "weights: got 'imagenet' with an nn.Module, expected a ConvNet given by name; "
                "load the module's weights before, or give a local file"
            )
