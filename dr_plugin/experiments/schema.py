"""What a recipe may say: one pydantic model for all of it.

Fixed knobs are typed fields; a swappable part is a `Slot`. Nothing is converted in silence: ``"512"``,
``512.0`` and ``true`` are no whole numbers, ``no`` is text.
"""

import io
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    PrivateAttr,
    Strict,
    Tag,
    field_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.representer import SafeRepresenter

from dr_plugin.datasets.augment import IMAGENET_MEAN, IMAGENET_STD

Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Side = Annotated[int, Field(ge=1, le=2048)]
Text = Annotated[str, Field(min_length=1)]
# Strict(False) is for the outer type only: YAML has lists, not tuples. The numbers inside stay strict.
Pair = Annotated[tuple[Positive, Positive], Strict(False)]
Channels = Annotated[tuple[float, float, float], Strict(False)]
Baseline = Literal["untrained", "pixels", "hog"]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]


class Section(BaseModel):
    """Part of a recipe: no key but its own, nothing converted in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Slot(BaseModel):
    """A part that can be exchanged: ``{type: Name, **arguments}``; see `slots` for what ``type`` may name."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    type: Text
    _place: str = PrivateAttr("")

    @property
    def arguments(self) -> dict[str, Any]:
        """All that stands beside ``type``."""
        return dict(self.__pydantic_extra__ or {})

    @property
    def place(self) -> str:
        """Where the slot stands, as ``file:line: key``, or its type where it comes from no file."""
        return self._place or self.type

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Slot):
            return NotImplemented
        return self.type == other.type and self.arguments == other.arguments

    __hash__ = None  # type: ignore[assignment]  # the arguments may hold lists


class RandomResizedCrop(Section):
    """A random part of the image, scaled to the whole: its share of the area and its width to height."""

    scale: Pair = (0.08, 1.0)
    ratio: Pair = (0.75, 4 / 3)

    @field_validator("scale", "ratio")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError("the smaller number first")
        return value

    @field_validator("scale")
    @classmethod
    def _shares(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[1] > 1:
            raise ValueError("shares of the image's area, at most 1")
        return value


class Augment(Section):
    """Random changes of each training image."""

    pixel_shift: Whole = 0
    horizontal_flip: bool = False
    random_resized_crop: RandomResizedCrop | None = None


class Normalize(Section):
    """Channel means and deviations of images in 0..1; ImageNet's unless given."""

    mean: Channels = IMAGENET_MEAN
    std: Annotated[tuple[Positive, Positive, Positive], Strict(False)] = IMAGENET_STD


def _classes(value: object) -> object:
    is_number = isinstance(value, int) and not isinstance(value, bool) and 2 <= value <= 100_000
    if value is None or is_number:
        return value
    if not isinstance(value, list) or len(value) < 2 or not all(isinstance(name, str) for name in value):
        raise ValueError("null for all, a number from 2 to 100000, or a list of at least 2 class ids (text)")
    if len(set(value)) < len(value):
        raise ValueError("each class id once")
    return value


class Data(Section):
    """The images; train and val both come from the one data set slot."""

    dataset: Slot
    classes: Annotated[int | list[str] | None, PlainValidator(_classes)] = None
    selection: Whole = 10
    image_size: Side
    packed_size: Side | None = None
    cache: Text | None = None
    augment: Augment = Augment()
    normalize: Normalize = Normalize()


class AveragedWeights(Section):
    """An exponential moving average of the weights, which is what the stage hands on."""

    decay: Annotated[float, Field(gt=0, lt=1)]


class _Stage(Section):
    name: Annotated[str, Field(pattern=r"^\w[\w-]*$")]
    kind: str
    epochs: Annotated[int, Field(ge=1, le=100_000)]
    batch_size: Annotated[int, Field(ge=1, le=65_536)]
    optimizer: Slot
    scheduler: Slot | None = None
    scheduler_interval: Literal["step", "epoch"] = "step"
    gradient_clip: Positive | None = None
    augment: Augment | None = None  # in the place of data.augment, as a whole
    averaged_weights: AveragedWeights | None = None
    evaluate_every: Whole = 1
    freeze_batchnorm: bool = False


class SoftmaxStage(_Stage):
    """Cross-entropy on a classifier head that is thrown away afterwards."""

    kind: Literal["softmax"] = "softmax"
    features: Literal["convnet", "embedding"] = "convnet"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    cutmix: Positive | None = None
    mixup: Positive | None = None


class RankingStage(_Stage):
    """A metric loss on what a sampler puts into a batch and a miner takes from it."""

    kind: Literal["ranking"] = "ranking"
    stream: Slot | None = None  # in the place of a sampler
    sampler: Slot | None = None
    miner: Slot | None = None
    loss: Slot
    loss_optimizer: Slot | None = None


def stage_kind(value: object) -> str | None:
    """A stage's ``kind``, which is its name where that is one of the two kinds."""
    if isinstance(value, _Stage):
        return getattr(value, "kind", None)
    kind = value.get("kind", value.get("name")) if isinstance(value, dict) else None
    return kind if isinstance(kind, str) and kind in STAGE_KINDS else None


STAGE_KINDS: dict[str, type[_Stage]] = {"softmax": SoftmaxStage, "ranking": RankingStage}
Stage = SoftmaxStage | RankingStage
_TaggedStage = Annotated[
    Annotated[SoftmaxStage, Tag("softmax")] | Annotated[RankingStage, Tag("ranking")],
    Discriminator(
        stage_kind,
        custom_error_type="stage_kind",
        custom_error_message="softmax or ranking; where kind is left out, the name has to be one of these",
    ),
]


class Evaluation(Section):
    """How the trunk is judged: precision of the k nearest training images."""

    k: Count = 30
    recall_at: list[Count] = []
    train: bool = True
    baselines: list[Baseline] = []
    batch_size: Count = 512
    backend: Literal["torch", "faiss"] = "torch"

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
    top: Whole = 10
    bottom: Whole = 10


class Checkpoint(Section):
    """Save between epochs too, every so many steps."""

    every_steps: Count | None = None


class Limits(Section):
    """Cut each stage short: it ends at whichever comes first."""

    steps: Count | None = None
    images: Count | None = None


class Sweep(Section):
    """The recipe run again and again, with other values of some keys and other seeds.

    Its points are every combination of ``grid``, then those of ``points``; each runs once a seed.
    """

    seeds: Annotated[list[Seed], Field(min_length=1)]
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    points: list[dict[str, Any]] = []
    shared_stages: Whole = 0
    x: Text | None = None
    figures: Annotated[list[Text], Field(min_length=1)] | None = None

    @field_validator("seeds", "figures")
    @classmethod
    def _each_once(cls, value: list[Any] | None) -> list[Any] | None:
        if value is not None and len(set(value)) < len(value):
            raise ValueError("each of them once")
        return value


class _Representer(SafeRepresenter):
    """Quotes text with line breaks and control characters, which YAML would fold or drop."""

    def represent_str(self, data: str) -> Any:
        style = None if data.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Representer.add_representer(str, _Representer.represent_str)


def to_yaml(section: Section) -> str:
    """A section as YAML in block style, defaults included."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.allow_unicode = True
    stream = io.StringIO()
    yaml.dump(section.model_dump(), stream)
    return stream.getvalue()


class Recipe(Section):
    """One experiment, complete: the file's text and the defaults of all that it leaves out."""

    name: Text
    seed: Seed = 0
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    channels_last: bool = True
    compile: bool = False
    tensorboard: bool = False
    data: Data
    relevance: Slot | None = None
    trunk: Slot
    stages: Annotated[list[_TaggedStage], Field(min_length=1)]
    evaluation: Evaluation = Evaluation()
    report: Report = Report()
    checkpoint: Checkpoint = Checkpoint()
    limits: Limits = Limits()
    sweep: Sweep | None = None

    @field_validator("name")
    @classmethod
    def _file_name(cls, value: str) -> str:
        if value in (".", "..") or not value.isprintable() or any(c in value for c in "/\\"):
            raise ValueError("a name without slashes: a folder may be called so")
        return value

    def to_yaml(self) -> str:
        """The recipe in block style, defaults included; loading it again gives an equal recipe."""
        return to_yaml(self)
