"""What turns images into embeddings: a run's trunk, a hand-crafted feature, or any callable."""

import hashlib
import importlib
from collections.abc import Callable, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from dr_plugin.checks import check_whole
from dr_plugin.datasets import BatchAugment
from dr_plugin.datasets.augment import IMAGENET_MEAN, IMAGENET_STD
from dr_plugin.experiments.data import batch_augment
from dr_plugin.experiments.environment import pick_device
from dr_plugin.experiments.evaluate import Embedder
from dr_plugin.experiments.problems import nearest
from dr_plugin.experiments.recipe import Recipe
from dr_plugin.relevance import features
from dr_plugin.relevance.feature_store import compute_features
from dr_plugin.relevance.image_rows import ImageBatches, ImageRows

from .trained import finished_run

Progress = Callable[[str, int, int | None], None]
_PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # images stay in 0..1
_BATCH = 128
_MANY = 1000  # images from which on processes pay
FIT_IMAGES = 2000  # that a feature learns from: codebooks do not gain from more
FEATURE_SIZE = 128  # pixels of a side that hand-crafted features look at, unless the user says otherwise


class Model(Protocol):
    """Images in, embeddings out.

    Attributes:
        name: For tables and pictures.
        image_size: Side of the stored pixels that it wants, S.
        distance: How its embeddings are compared: a name or an object, as of `feature_distances`.
        fingerprint: Hex digits that change when the embeddings of the same images may.
        recipe: That of the run; None of a model that is not ours.
    """

    name: str
    image_size: int
    distance: Any
    fingerprint: str
    recipe: Recipe | None

    def fit(self, images: Any, *, progress: Progress | None = None) -> None:
        """Learn what a feature learns from images without labels; nothing where nothing is learned."""

    def embed(self, images: Any, *, progress: Progress | None = None) -> Tensor:
        """Embeddings (N, D) float32 of uint8 (N, 3, H, W), or of an object with ``len`` and ``batch``."""


class NetworkModel:
    """A network as a `Model`: batches of prepared images through it, without gradients.

    Args:
        name: For tables and pictures.
        network: Maps float images (B, 3, S, S) to embeddings (B, D).
        embedder: Prepares images and takes them through the network.
        fingerprint: As of `Model`.
        image_size: Side of the stored pixels that it wants.
        recipe: Of the run whose network it is.
        begun_with_weights: Whether that run began with the weights of a file.
    """

    distance = "euclidean"

    def __init__(
        self,
        name: str,
        network: Callable[[Tensor], Any],
        embedder: Embedder,
        *,
        fingerprint: str,
        image_size: int,
        recipe: Recipe | None = None,
        begun_with_weights: bool = False,
    ) -> None:
        self.begun_with_weights = begun_with_weights
        self.name, self.fingerprint, self.image_size, self.recipe = name, fingerprint, image_size, recipe
        self._network, self._embedder = _Checked(name, network), embedder

    def fit(self, images: Any, *, progress: Progress | None = None) -> None:
        """Nothing: the network is trained."""

    def embed(self, images: Any, *, progress: Progress | None = None) -> Tensor:
        """Embeddings (N, D) float32 on the CPU.

        Raises:
            ValueError: if the network gives no (B, D) tensor of finite numbers for a batch of B images.
        """
        source = images if isinstance(images, ImageBatches) else _ArrayImages(ImageRows(images))
        embed = replace(self._embedder, progress=progress)
        return embed(self._network, source, f"embed by {self.name}").cpu()


class _Checked(nn.Module):
    """What a model gives for a batch, seen to be embeddings."""

    def __init__(self, name: str, network: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.name, self.network = name, network

    def forward(self, images: Tensor) -> Tensor:
        count = len(images)
        try:
            found = self.network(images)
        except Exception as error:  # any network has its own way to refuse images
            raise ValueError(
                f"{self.name}: failed on images {tuple(images.shape)}: {type(error).__name__}: {error}; "
                "see whether it wants another --image-size"
            ) from error
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != count or found.shape[1] == 0:
            shape = tuple(found.shape) if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise ValueError(
                f"{self.name}: got {shape} for {count} images, expected a tensor ({count}, D): the embeddings"
            )
        if not found.isfinite().all():
            raise ValueError(
                f"{self.name}: got NaN or infinity in its embeddings, expected finite numbers: see whether it was "
                "trained to the end, and whether the images are prepared as it wants them"
            )
        return found


@dataclass(frozen=True)
class _ArrayImages:
    """Images in memory, as an `Embedder` takes them."""

    rows: ImageRows

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Tensor) -> tuple[Tensor, None]:
        return torch.from_numpy(self.rows.take(indices.numpy())), None


class FeatureModel:
    """A hand-crafted feature as a `Model`.

    Args:
        name: For tables and pictures.
        transformer: As those of `dr_plugin.relevance.features`.
        image_size: Side of the pixels it looks at.
    """

    recipe: Recipe | None = None

    def __init__(self, name: str, transformer: Any, *, image_size: int = FEATURE_SIZE) -> None:
        self.name, self.transformer, self.image_size = name, transformer, image_size
        own = getattr(transformer, "distance", "euclidean")
        self.distance = transformer if own == "own" else own
        # What it learns follows from the images that it is fitted to.
        about = f"{type(transformer).__qualname__} {transformer.get_params()!r} {image_size}"
        self.fingerprint = hashlib.sha256(about.encode()).hexdigest()

    def fit(self, images: Any, *, progress: Progress | None = None) -> None:
        """Learn a codebook and the like from the images, without labels."""
        rows = ImageRows(images)
        count = min(len(rows), FIT_IMAGES)
        chosen = np.sort(np.random.default_rng(0).permutation(len(rows))[:count])
        if progress is not None:
            progress(f"fit {self.name}", 0, 1)
        self.transformer.fit(rows.take(chosen))
        if progress is not None:
            progress(f"fit {self.name}", 1, 1)

    def embed(self, images: Any, *, progress: Progress | None = None) -> Tensor:
        """Features (N, F) float32."""
        found = compute_features(self.transformer, images, n_jobs=processes(images), progress=progress)
        return torch.from_numpy(np.asarray(found, np.float32))


def processes(images: Sized) -> int:
    """How many processes describe these images, -1 for all cores; 1 where starting them costs more."""
    return -1 if len(images) > _MANY else 1


def open_model(
    spec: str,
    *,
    device: str = "auto",
    image_size: int | None = None,
    normalize: str = "imagenet",
) -> Model:
    """The model that ``spec`` names.

    Args:
        spec: A run's folder, the name of a class of `dr_plugin.relevance.features`, or ``package.module:callable``,
            where the callable (a module, such as one of timm's, or a function) maps float images (B, 3, S, S) to
            embeddings (B, D).
        device: "auto" (a GPU where there is one) or a torch device.
        image_size: S; by default the run's own, 128 for a feature, 224 for a callable.
        normalize: For a callable: "imagenet" subtracts ImageNet's mean and divides by its deviation; "none" gives
            it images in 0..1.
    Raises:
        ValueError: if there is no such model, it is a run that is not finished, or an argument does not suit it.
    """
    if image_size is not None:
        image_size = check_whole("image_size", image_size, minimum=1)
    if ":" in spec and not Path(spec).exists():
        return _callable_model(spec, pick_device(device), image_size or 224, normalize)
    if Path(spec).is_dir():
        if image_size is not None:
            raise ValueError("image_size: got one for a run, expected none: the run's recipe has its own")
        return open_run(Path(spec), device=device)
    if spec in features.__all__:
        return FeatureModel(spec, getattr(features, spec)(), image_size=image_size or FEATURE_SIZE)
    raise ValueError(
        f"model: got {spec!r}, expected a run's folder, a feature ({', '.join(features.__all__)}) or "
        f"package.module:callable{nearest(spec, features.__all__)}"
    )


def open_run(folder: Path, *, device: str = "auto") -> NetworkModel:
    """The network of a finished run; errors as of `finished_run`."""
    run = finished_run(folder, device=device)
    recipe = run.recipe
    return NetworkModel(
        run.name,
        run.trunk,
        Embedder(batch_augment(recipe), run.device, recipe.precision, recipe.evaluation.batch_size),
        fingerprint=run.fingerprint,
        image_size=recipe.data.packed_size or recipe.data.image_size,
        recipe=recipe,
        begun_with_weights=run.begun_with_weights,
    )


def _callable_model(spec: str, device: torch.device, image_size: int, normalize: str) -> NetworkModel:
    if normalize not in ("imagenet", "none"):
        raise ValueError(f"normalize: got {normalize!r}, expected 'imagenet' or 'none'")
    module_name, _, attribute = spec.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), *attribute.split("."))):
        raise ValueError(f"model: got {spec!r}, expected package.module:callable")
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # importing runs the module's code, which may raise anything
        raise ValueError(
            f"model: got {spec!r}, expected package.module:callable that can be imported; "
            f"{type(error).__name__}: {error}"
        ) from error
    if isinstance(found, type) or not callable(found):
        raise ValueError(
            f"model: got {spec!r}, {'a class' if isinstance(found, type) else f'a {type(found).__name__}'}; expected "
            "an object that maps images (B, 3, S, S) to embeddings (B, D): a module's instance, or a function"
        )
    digest = hashlib.sha256(f"{spec} {image_size} {normalize}".encode())
    if isinstance(found, nn.Module):
        found = found.to(device)
        for name, value in found.state_dict().items():
            digest.update(
                name.encode()
                + value.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes()
            )
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if normalize == "imagenet" else _PLAIN
    embedder = Embedder(BatchAugment(image_size, mean=mean, std=std), device, "float32", _BATCH)
    return NetworkModel(attribute, found, embedder, fingerprint=digest.hexdigest(), image_size=image_size)
