"""The ConvNet alone as an embedding: the first row of the paper's Table 2."""

import os

from torch import Tensor, nn

from dr_plugin.checks import check_choice, check_path, check_whole_or_none, shown
from dr_plugin.trunks.convnets import CONVNET_STEMS, build_convnet, count_features
from dr_plugin.trunks.weights import load_state, read_state


class ConvNetEmbedding(nn.Module):
    """A classification network's features, brought to unit length: image -> embedding without a ranking layer.

    What Table 2 calls "ConvNet" when it was trained by softmax alone. A `DeepRankingTrunk` with the same ConvNet
    starts from its weights: `weights="runs/tiny_convnet_cpu/checkpoint/best.pt"`.

    Differs from the paper in: features are compared at unit length. It says only that the Euclidean distance of the
    penultimate layer is taken.

    Attributes:
        convnet: (B, 3, S, S) -> (B, F), without normalisation.
    Args:
        convnet: Name of a torchvision classification model, whose last layer is cut off, or a module that maps
            (B, 3, S, S) to (B, F), taken as it is.
        input_size: Height and width of the images, S, at which the network is tried when it is built; None: it is
            not tried, and a `convnet` given by name is built for 224.
        convnet_stem: As of `DeepRankingTrunk`; only for a ConvNet given by name.
        weights: None (random), "imagenet" (only for a ConvNet given by name) or a local file; see `load_weights`.
    Shape:
        images (B, 3, S, S) float -> (B, F) float32, rows of length 1 (or 0, where all features are 0).
    Raises:
        ValueError: if the ConvNet is unknown, cannot take images of this size or gives no vector, or a file of
            weights does not fit.
    Example:
        >>> ConvNetEmbedding("resnet18", input_size=64)(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 512])

    References:
        Wang et al., Learning Fine-grained Image Similarity with Deep Ranking, CVPR 2014, section 6.5.
    """

    def __init__(
        self,
        convnet: str | nn.Module = "alexnet",
        *,
        input_size: int | None = None,
        convnet_stem: str = "standard",
        weights: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(convnet, str | nn.Module):
            raise ValueError(
                f"convnet: got {shown(convnet)}, expected a torchvision model's name or an nn.Module"
            )
        if weights is not None:
            check_path("weights", weights)
        input_size = check_whole_or_none("input_size", input_size, minimum=1, below=2**31)
        check_choice("convnet_stem", convnet_stem, CONVNET_STEMS)
        named = isinstance(convnet, str)
        if not named and (weights == "imagenet" or convnet_stem != "standard"):
            raise ValueError(
                f"got weights={weights!r} and convnet_stem={convnet_stem!r} with an nn.Module, expected a local file "
                "or None, and 'standard': both change only a ConvNet given by name"
            )
        state = None if weights is None or weights == "imagenet" else read_state(weights)
        self.input_size = input_size
        self.classifier_names: frozenset[str] = frozenset()
        if isinstance(convnet, str):
            convnet, self.classifier_names = build_convnet(
                convnet, input_size=input_size or 224, stem=convnet_stem, imagenet=weights == "imagenet"
            )
        self.convnet = convnet
        if input_size is not None:
            count_features(convnet, input_size)
        if state is not None:
            load_state(self, state, source=str(weights))

    def forward(self, images: Tensor) -> Tensor:
        """Unit vectors (B, F) of images (B, 3, S, S)."""
        if not images.is_floating_point() or images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
            raise ValueError(
                f"images: got {tuple(images.shape)} {images.dtype}, expected (B, 3, S, S) of a float type"
            )
        return nn.functional.normalize(self.convnet(images).float(), dim=1)
