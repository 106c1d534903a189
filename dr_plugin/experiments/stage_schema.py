"""What a recipe may say of a stage of training: one of two kinds, told apart by ``kind`` or the stage's name."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from .data_schema import Augment
from .schema_base import Positive, Section, Slot, Whole


class AveragedWeights(Section):
    """An exponential moving average of the weights, which is what the stage hands on."""

    decay: Annotated[float, Field(gt=0, lt=1)]
    """Share of the average that a step keeps."""


class _Stage(Section):
    name: Annotated[str, Field(pattern=r"^\w[\w-]*$")]
    """What metrics and `--set` call the stage: letters, digits, _ and -."""
    kind: str
    """softmax or ranking; may be left out where the name is one of these."""
    epochs: Annotated[int, Field(ge=1, le=100_000)]
    """How many times the images (or the sampler's epoch) are gone through."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)]
    """Images a step."""
    optimizer: Slot
    """A torch optimizer of the trunk's weights."""
    scheduler: Slot | None = None
    """A torch learning-rate scheduler; null: the rate stays."""
    scheduler_interval: Literal["step", "epoch"] = "step"
    """When the scheduler is stepped."""
    gradient_clip: Positive | None = None
    """Largest norm of the gradient; null: not clipped."""
    augment: Augment | None = None
    """In the place of `data.augment`, as a whole; null: as there."""
    averaged_weights: AveragedWeights | None = None
    """Hand on an average of the weights over the steps; null: the weights themselves."""
    evaluate_every: Whole = 1
    """Epochs between evaluations on the selection images; 0: never."""
    freeze_batchnorm: bool = False
    """Keep the running statistics of batch normalisation as they are."""


class SoftmaxStage(_Stage):
    """Cross-entropy on a classifier head that is thrown away afterwards."""

    kind: Literal["softmax"] = "softmax"
    """What makes it a softmax stage; may be left out where the name is softmax."""
    features: Literal["convnet", "embedding"] = "convnet"
    """What the classifier head stands on: the ConvNet's features or the trunk's embedding."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target that is spread over all classes."""
    cutmix: Positive | None = None
    """Alpha of CutMix; null: none."""
    mixup: Positive | None = None
    """Alpha of Mixup; null: none."""


class RankingStage(_Stage):
    """A metric loss on what a sampler puts into a batch and a miner takes from it."""

    kind: Literal["ranking"] = "ranking"
    """What makes it a ranking stage; may be left out where the name is ranking."""
    stream: Slot | None = None
    """Triplets from shards in bounded memory, in the place of a sampler."""
    sampler: Slot | None = None
    """Which images make a batch; null: all, in a new random order each epoch."""
    miner: Slot | None = None
    """Which pairs or triplets of a batch the loss sees; null: all that the loss forms itself."""
    loss: Slot
    """What they cost; may hold slots itself (distance, reducer, regularizer)."""
    loss_optimizer: Slot | None = None
    """A torch optimizer of the loss's own weights, where it has any; null: as `optimizer`."""


def stage_kind(value: object) -> str | None:
    """A stage's ``kind``, which is its name where that is one of the two kinds."""
    if isinstance(value, _Stage):
        return getattr(value, "kind", None)
    kind = value.get("kind", value.get("name")) if isinstance(value, dict) else None
    return kind if isinstance(kind, str) and kind in STAGE_KINDS else None


STAGE_KINDS: dict[str, type[_Stage]] = {"softmax": SoftmaxStage, "ranking": RankingStage}
Stage = SoftmaxStage | RankingStage
TaggedStage = Annotated[
    Annotated[SoftmaxStage, Tag("softmax")] | Annotated[RankingStage, Tag("ranking")],
    Discriminator(
        stage_kind,
        custom_error_type="stage_kind",
        custom_error_message="softmax or ranking; where kind is left out, the name has to be one of these",
    ),
]
