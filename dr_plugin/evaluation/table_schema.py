"""What a table's recipe may say: rated triplets, what is learned from, and one row a model."""

from typing import Annotated, Any

from pydantic import Field

from dr_plugin.experiments.schema import Count, Section, Seed, Side, Slot, Text, to_yaml

Share = Annotated[float, Field(ge=0, le=1)]


class Rated(Section):
    """The triplets to measure on, their images squeezed to squares."""

    dataset: Slot
    image_size: Side = 128


class LearnFrom(Section):
    """Unrated images with classes, of which features learn: codebooks, choices, transformations.

    ``relevance`` sets the images of a class in order, for the rows that learn from triplets: the paper's relevance
    training data, in small. Without one these rows learn from the classes alone.
    """

    dataset: Slot
    images: Annotated[int, Field(ge=2)] | None = 5000
    image_size: Side = 128
    relevance: Slot | None = None


class Paper(Section):
    """The paper's figures, shown beside ours."""

    similarity_precision: Share
    score_at_top_30: int | None = None


class Trained(Section):
    """A trunk: the recipe that trains it, on the data set that all rows learn from, or a finished run's folder.

    ``set`` are keys of that recipe; ``weights_from`` is a row whose network's weights its trunk begins with.
    """

    recipe: Text | None = None
    run: Text | None = None
    set: dict[str, Any] = Field(default={})
    weights_from: Text | None = None


class Oasis(Section):
    """The bilinear similarity of ref. [3], learned on another row's features."""

    on: Text
    steps: Count = 200_000
    aggressiveness: Annotated[float, Field(gt=0)] = 0.1


class Linear(Section):
    """A linear embedding of other rows' features side by side, learned with the ranking loss."""

    on: Annotated[list[Text], Field(min_length=1)]
    size: Count = 256
    steps: Count = 5000


class Golden(Section):
    """A weighted sum of other rows' similarities, its weights learned on the ratings of the other folds."""

    on: Annotated[list[Text], Field(min_length=1)]
    folds: Annotated[int, Field(ge=2)] = 10


KINDS = ("feature", "model", "oasis", "linear", "golden")


class Row(Section):
    """One model of the table; exactly one of `KINDS` says which."""

    name: Text
    feature: Slot | None = None
    model: Trained | None = None
    oasis: Oasis | None = None
    linear: Linear | None = None
    golden: Golden | None = None
    paper: Paper | None = None

    @property
    def kind(self) -> str:
        """Which of `KINDS` the row is."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def content(self) -> Slot | Trained | Oasis | Linear | Golden:
        """What the row says of its kind."""
        content: Slot | Trained | Oasis | Linear | Golden = getattr(self, self.kind)
        return content

    @property
    def folder_name(self) -> str:
        """Of the run that a model's row trains."""
        return "".join(c if c.isalnum() else "-" for c in self.name.lower()).strip("-")

    @property
    def ingredients(self) -> list[str]:
        """Names of the rows that this one is made of."""
        match self.content:
            case Trained(weights_from=str(name)) | Oasis(on=name):
                return [name]
            case Linear(on=names) | Golden(on=names):
                return list(names)
        return []


class Examples(Section):
    """The picture of Fig. 7: a few queries, and the images that some rows rank first."""

    rows: Annotated[list[Text], Field(min_length=1)]
    queries: Count = 4
    top: Count = 8


class TableRecipe(Section):
    """A table of models, measured on rated triplets."""

    name: Text
    seed: Seed = 0
    rated: Rated
    learn_from: LearnFrom
    rows: Annotated[list[Row], Field(min_length=1)]
    compare_with: Text | None = None
    k: Count = 30
    resamples: Annotated[int, Field(ge=100)] = 10_000
    examples: Examples | None = None
    cache: Text | None = None

    def row(self, name: str) -> Row:
        """The row of this name."""
        return next(row for row in self.rows if row.name == name)

    def to_yaml(self) -> str:
        """The recipe in block style, defaults included; loading it again gives an equal recipe."""
        return to_yaml(self)
