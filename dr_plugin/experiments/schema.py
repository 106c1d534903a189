"""What a recipe may say: one pydantic model for all of it.

Fixed knobs are typed fields; a swappable part is a `Slot`. Nothing is converted in silence: ``"512"``,
``512.0`` and ``true`` are no whole numbers, ``no`` is text.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from .compare_schema import Comparison
from .data_schema import Augment, Data
from .schema_base import Count, Section, Seed, Side, Slot, Text, Whole, to_yaml
from .stage_schema import STAGE_KINDS, RankingStage, SoftmaxStage, Stage, TaggedStage

__all__ = [
    "STAGE_KINDS",
    "Augment",
    "Checkpoint",
    "Comparison",
    "Count",
    "Data",
    "Evaluation",
    "Limits",
    "RankingStage",
    "Recipe",
    "Report",
    "Section",
    "Seed",
    "Side",
    "Slot",
    "SoftmaxStage",
    "Stage",
    "Sweep",
    "Text",
    "to_yaml",
]

Baseline = Literal["untrained", "pixels", "hog"]


class Evaluation(Section):
    """How the trunk is judged: precision of the k nearest images of a gallery."""

    gallery: Literal["train", "val"] = "train"
    """What each val image ranks: the training images; or val: all other val images, of classes not trained on."""
    k: Count = 30
    """How many nearest images precision is of."""
    recall_at: list[Count] = Field(default=[])
    """Further numbers of nearest images, of which one has to be of the query's class."""
    train: bool = True
    """Also train against train, without the image itself."""
    baselines: list[Baseline] = Field(default=[])
    """What else is measured the same way: the untrained trunk, raw pixels, HOG features."""
    batch_size: Count = 512
    """Images embedded at a time."""
    backend: Literal["torch", "faiss"] = "torch"
    """What finds the nearest neighbours; both are exact."""
    rerank: Annotated[int, Field(ge=2)] | None = None
    """Also order the so many nearest anew by the similarity unit of the last stage's loss; null: do not."""

    @field_validator("recall_at")
    @classmethod
    def _ascending(cls, value: list[int]) -> list[int]:
        if value != sorted(set(value)):
            raise ValueError("ascending numbers, each once")
        return value

    @field_validator("baselines")
    @classmethod
    def _distinct(cls, value: list[Baseline]) -> list[Baseline]:
        if len(set(value)) < len(value):
            raise ValueError("each baseline once")
        return value


class Report(Section):
    """How many validation images the report shows, each with how many nearest and farthest images."""

    queries: Whole = 5
    """Validation images shown."""
    top: Whole = 10
    """Nearest images of the gallery for each."""
    bottom: Whole = 10
    """Farthest images of the gallery for each."""


class Checkpoint(Section):
    """When the run is saved, beside after each epoch."""

    every_steps: Count | None = None
    """Save after every so many steps too; null: after epochs only."""


class Limits(Section):
    """Cut each stage short: it ends at whichever comes first."""

    steps: Count | None = None
    """Steps of a stage; null: no limit."""
    images: Count | None = None
    """Images seen by a stage; null: no limit."""


class Sweep(Section):
    """The recipe run again and again, with other values of some keys and other seeds.

    Its points are every combination of ``grid``, then those of ``points``; each runs once a seed.
    """

    seeds: Annotated[list[Seed], Field(min_length=1)]
    """Each point runs once with each of these."""
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default={})
    """Keys of the recipe, as for `--set`, with the values that each takes; every combination is a point."""
    points: list[dict[str, Any]] = Field(default=[])
    """Further points, each a mapping of keys to values; `{}` is the recipe itself."""
    shared_stages: Whole = 0
    """The first so many stages are trained once a seed for all points."""
    x: Text | None = None
    """The key along the picture's axis; null: points by name."""
    figures: Annotated[list[Text], Field(min_length=1)] | None = None
    """Keys of `metrics.json` to tabulate; null: `val.precision_at_` k alone."""

    @field_validator("seeds", "figures")
    @classmethod
    def _each_once(cls, value: list[Any] | None) -> list[Any] | None:
        if value is not None and len(set(value)) < len(value):
            raise ValueError("each of them once")
        return value


class Recipe(Section):
    """One experiment, complete: the file's text and the defaults of all that it leaves out."""

    name: Text
    """What the run's folder is called; left out: the file's name."""
    seed: Seed = 0
    """Of everything that draws."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the trunk (autocast); mining and loss are float32."""
    channels_last: bool = True
    """The memory layout of images, which convolutions are mostly faster in."""
    compile: bool = False
    """torch.compile of the trunk."""
    sync_batchnorm: bool = False
    """On several processes, batch normalisation over the images of all of them; on GPUs only."""
    tensorboard: bool = False
    """Write the course of the run for TensorBoard too; needs `pip install 'dr-plugin[tensorboard]'`."""
    data: Data
    """The images."""
    relevance: Slot | None = None
    """r(i, j) of the images trained on, for samplers, miners and streams that take one."""
    trunk: Slot
    """The network from image to embedding; the run supplies `input_size`, which is `data.image_size`."""
    stages: Annotated[list[TaggedStage], Field(min_length=1)]
    """What is trained, one after another, on the one trunk."""
    evaluation: Evaluation = Evaluation()
    """How the trunk is judged."""
    report: Report = Report()
    """What the report shows."""
    checkpoint: Checkpoint = Checkpoint()
    """When the run is saved, beside after each epoch."""
    limits: Limits = Limits()
    """Cut each stage short."""
    sweep: Sweep | None = None
    """The recipe over a grid of values and seeds; null: one run."""
    compare: Comparison | None = None
    """The recipe under several samplers, miners and losses; null: under its own alone."""

    @field_validator("name")
    @classmethod
    def _file_name(cls, value: str) -> str:
        if value in (".", "..") or not value.isprintable() or any(c in value for c in "/\\"):
            raise ValueError("a name without slashes: a folder may be called so")
        return value

    @property
    def kind(self) -> Literal["experiment", "sweep", "comparison"]:
        """What running it makes: one run, or many."""
        return "sweep" if self.sweep is not None else "experiment" if self.compare is None else "comparison"

    def to_yaml(self) -> str:
        """The recipe in block style, defaults included; loading it again gives an equal recipe."""
        return to_yaml(self)
