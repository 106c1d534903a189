"""A finished run found, checked and loaded; and its trunk as a module of its own: `dr_plugin.load`."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import torch
from torch import Tensor, nn
from torchvision.transforms import functional

from dr_plugin.experiments import build, checkpoint, recipe_file
from dr_plugin.experiments.data import batch_augment
from dr_plugin.experiments.environment import pick_device
from dr_plugin.experiments.recipe import Recipe, load_recipe
from dr_plugin.trunks.convnets import count_features

_CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """What a run's folder gives to those who use its model.

    Attributes:
        folder: As it was given.
        recipe: Without the file of weights that its trunk began with.
        trunk: With the weights of the best checkpoint, on the device, in evaluation mode.
        device: Where it is.
        fingerprint: Hex digits that change when the embeddings of the same images may.
        begun_with_weights: Whether the run began with the weights of a file.
    """

    folder: Path
    recipe: Recipe
    trunk: nn.Module
    device: torch.device
    fingerprint: str
    begun_with_weights: bool

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name


def finished_run(folder: Path, *, device: str = "auto") -> FinishedRun:
    """Find, check and load a run.

    The global random generators stay as they were. The checkpoint is read with ``weights_only=True``; the trunk is
    built as the folder's recipe says, which may name a class of yours.

    Args:
        folder: Of a run that is finished.
        device: "auto" (a GPU where there is one) or a torch device.
    Raises:
        ValueError: if the folder holds no run, another kind of work or one that is not finished, or its checkpoint is
            damaged or of another network.
    """
    chosen = pick_device(device)
    recipe, begun_with_weights = _recipe_of(folder)
    best = folder / "checkpoint" / "best.pt"
    if not (folder / "metrics.json").is_file() or not best.is_file():
        raise ValueError(
            f"model: the run {folder} is not finished, expected its metrics.json and checkpoint/best.pt; "
            f"go on with: dr-run --resume {quote(str(folder))}"
        )
    weights = checkpoint.load(best)
    trunk = new_trunk(recipe)
    try:
        trunk.load_state_dict(weights["models"]["trunk"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"model: {best} does not fit the run's recipe: {error}") from error
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    return FinishedRun(
        folder,
        recipe,
        trunk.to(chosen).to(memory_format=layout).eval(),
        chosen,
        hashlib.sha256(best.read_bytes() + recipe.to_yaml().encode()).hexdigest(),
        begun_with_weights,
    )


def new_trunk(recipe: Recipe) -> nn.Module:
    """The recipe's trunk with the weights that training began with; the global random generators stay as they were."""
    state = checkpoint.generators_state(_CPU)
    try:
        # A GPU's, which torch.manual_seed sets too, is not drawn from.
        torch.default_generator.manual_seed(recipe.seed)
        return build.build_trunk(recipe)
    finally:
        checkpoint.restore_generators(state, _CPU)


def _recipe_of(folder: Path) -> tuple[Recipe, bool]:
    """The recipe of one run, and whether the run began with a file's weights."""
    file = folder / "recipe.yaml"
    if not file.is_file():
        raise ValueError(f"model: {folder} holds no recipe.yaml, expected the folder of a run")
    data = recipe_file.read(file).data
    if "rows" in data:
        raise ValueError(f"model: {folder} is a table, expected one run: choose one in {folder / 'models'}")
    trunk = data.get("trunk")
    begun_with_weights = isinstance(trunk, dict) and trunk.get("weights") is not None
    # The checkpoint replaces the weights that the run began with, whose file may be gone.
    recipe = load_recipe(file, ["trunk.weights=null"] if begun_with_weights else [])
    if recipe.kind != "experiment":
        raise ValueError(
            f"model: {folder} is a {recipe.kind}, expected one run: choose one in {folder / 'runs'}"
        )
    return recipe, begun_with_weights


class TrainedModel(nn.Module):
    """The model of a finished run: images as they come, embeddings out; made by `dr_plugin.load`.

    Images are brought to the model's device and prepared as those of the run's evaluation: where the run stored them at
    a size of its own (``data.packed_size``), the shorter side is resized to it and the centre cropped to a square; then
    they are resized to ``image_size`` (antialiased) and normalised.

    - float32, whatever precision the run was trained in; under `torch.autocast` as the user has it.
    - Evaluation mode, and gradients flow: use `torch.no_grad` where none are wanted.
    - Float images are refused: those in 0..1 and those already normalised cannot be told apart.

    Attributes:
        trunk: The network, with the weights of the run's best checkpoint.
        name: The run's folder's.
        recipe: The run's.
        image_size: Side of what the trunk sees, S.
        embedding_size: Length of an embedding, D.
    Args:
        run: As `finished_run` gives it.
    Shape:
        images (B, 3, H, W) uint8 -> (B, D) float32, on the model's device; of unit length where the trunk's are.
    Raises:
        ValueError: if the images are not such a batch.
    """

    _place: Tensor  # moves with the model, and so says where it is

    def __init__(self, run: FinishedRun) -> None:
        super().__init__()
        self.trunk = run.trunk
        self.name, self.recipe = run.name, run.recipe
        self.image_size = run.recipe.data.image_size
        self.embedding_size = count_features(run.trunk, self.image_size)
        self._stored_size = run.recipe.data.packed_size
        self._prepare = batch_augment(run.recipe)
        self.register_buffer("_place", torch.empty(0, device=run.device), persistent=False)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings (B, D) of images (B, 3, H, W)."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"images: got {tuple(images.shape)} {images.dtype}, expected (B, 3, H, W) torch.uint8 in 0..255, not "
                "normalised; of images in 0..1 take (255 * images).round().to(torch.uint8)"
            )
        if len(images) == 0:
            return torch.empty(0, self.embedding_size, device=self._place.device)
        prepared = self._prepare(self._stored(images.to(self._place.device)), training=False)
        embeddings: Tensor = self.trunk(prepared)
        return embeddings.float()

    def _stored(self, images: Tensor) -> Tensor:
        """As `PackedImages` would keep them for the run."""
        size = self._stored_size
        if size is None or images.shape[2:] == (size, size):
            return images
        square: Tensor = functional.center_crop(functional.resize(images, [size], antialias=True), [size])
        return square

    def extra_repr(self) -> str:
        """What the printed layers do not show."""
        return f"{self.name}: image_size={self.image_size}, embedding_size={self.embedding_size}"


def load(folder: str | os.PathLike[str], *, device: str = "auto") -> TrainedModel:
    """As `dr_plugin.load`, which is its public name."""
    return TrainedModel(finished_run(Path(folder), device=device))
