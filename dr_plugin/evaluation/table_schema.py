"""What a table's recipe may say: rated triplets, what is learned from, and one row a model."""

from typing import Annotated, Any

from pydantic import Field

from dr_plugin.experiments.schema import Count, Section, Seed, Side, Slot, Text, to_yaml

Share = Annotated[float, Field(ge=0, le=1)]


class Rated(Section):
    """The triplets to measure on, their images squeezed to squares."""

    dataset: Slot
    """The rated triplets, such as `SimilarityTriplets`."""
    image_size: Side = 128
    """Side in pixels that images are squeezed to."""


class LearnFrom(Section):
    """Unrated images with classes, of which features learn: codebooks, choices, transformations.

    ``relevance`` sets the images of a class in order, for the rows that learn from triplets: the paper's relevance
    training data, in small. Without one these rows learn from the classes alone.
    """

    dataset: Slot
    """Images with classes."""
    images: Annotated[int, Field(ge=2)] | None = 5000
    """How many of them, the same number a class; null: all."""
    image_size: Side = 128
    """Side in pixels that images are squeezed to."""
    relevance: Slot | None = None
    """r(i, j) of these images; null: none."""


class Paper(Section):
    """The paper's figures, shown beside ours."""

    similarity_precision: Share
    """Similarity precision, in 0..1."""
    score_at_top_30: int | None = None
    """Score at top 30."""


class Trained(Section):
    """A trunk: the recipe that trains it, on the data set that all rows learn from, or a finished run's folder.

    ``set`` are keys of that recipe; ``weights_from`` is a row whose network's weights its trunk begins with.
    """

    recipe: Text | None = None
    """Recipe that trains the trunk: a file, or the name of a shipped one."""
    run: Text | None = None
    """Folder of a finished run."""
    set: dict[str, Any] = Field(default={})
    """Keys of the recipe with their values, as for `--set`."""
    weights_from: Text | None = None
    """Row whose network's weights the trunk begins with."""


class Oasis(Section):
    """The bilinear similarity of ref. [3], learned on another row's features."""

    on: Text
    """Row whose features it compares."""
    steps: Count = 200_000
    """Triplets learned from."""
    aggressiveness: Annotated[float, Field(gt=0)] = 0.1
    """C, the most that one triplet may move the matrix."""


class Linear(Section):
    """A linear embedding of other rows' features side by side, learned with the ranking loss."""

    on: Annotated[list[Text], Field(min_length=1)]
    """Rows whose features it embeds."""
    size: Count = 256
    """Length of the embedding."""
    steps: Count = 5000
    """Steps of training."""


class Golden(Section):
    """A weighted sum of other rows' similarities, its weights learned on the ratings of the other folds."""

    on: Annotated[list[Text], Field(min_length=1)]
    """Rows whose similarities it sums."""
    folds: Annotated[int, Field(ge=2)] = 10
    """Folds of the queries; weights for a fold are learned on the others."""


KINDS = ("feature", "model", "oasis", "linear", "golden")


class Row(Section):
    """One model of the table; exactly one of `KINDS` says which."""

    name: Text
    """What the table calls the row."""
    feature: Slot | None = None
    """A feature of `relevance.features`, or a transformer of yours."""
    model: Trained | None = None
    """A trunk."""
    oasis: Oasis | None = None
    """A bilinear similarity on another row's features."""
    linear: Linear | None = None
    """A linear embedding of other rows' features."""
    golden: Golden | None = None
    """A weighted sum of other rows' similarities."""
    paper: Paper | None = None
    """The paper's figures for this row."""

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
    """Rows shown."""
    queries: Count = 4
    """Queries shown."""
    top: Count = 8
    """Images of each row and query."""


class TableRecipe(Section):
    """A table of models, measured on rated triplets."""

    name: Text
    """What the table's folder is called; left out: the file's name."""
    seed: Seed = 0
    """Of everything that draws."""
    rated: Rated
    """The triplets to measure on."""
    learn_from: LearnFrom
    """What features learn from."""
    rows: Annotated[list[Row], Field(min_length=1)]
    """The models, one a row."""
    compare_with: Text | None = None
    """Row that each other is tested against."""
    k: Count = 30
    """K of the score at top K."""
    resamples: Annotated[int, Field(ge=100)] = 10_000
    """Resamples of the bootstrap intervals."""
    examples: Examples | None = None
    """The picture of Fig. 7; null: none."""
    cache: Text | None = None
    """Folder for computed features; null: the user's cache folder."""

    def row(self, name: str) -> Row:
        """The row of this name."""
        return next(row for row in self.rows if row.name == name)

    def to_yaml(self) -> str:
        """The recipe in block style, defaults included; loading it again gives an equal recipe."""
        return to_yaml(self)
