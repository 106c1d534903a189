"""How each kind of row is made: a feature, a trained model, and what is learned on top of other rows."""

from pathlib import Path
from typing import Any

import numpy as np

from dr_plugin.datasets import PackedImages, SimilarityTriplets
from dr_plugin.experiments.build import build_feature, dataset_of, relevance_of
from dr_plugin.experiments.cache import cache_root, dataset_identity, short_hash
from dr_plugin.experiments.journal import Reporter
from dr_plugin.experiments.linear_embedding import LinearEmbedding, normalized_blocks
from dr_plugin.experiments.recipe import RankingStage, RecipeError, Slot, load_recipe
from dr_plugin.experiments.run import is_finished, run_experiment
from dr_plugin.relevance import OASIS
from dr_plugin.relevance.feature_store import StoredFeatures, folder_name
from dr_plugin.relevance.training_triplets import CLASSES, RELEVANCE

from .data import RatedData, balanced_sample, rated_data
from .ingredients import Array, GoldenDistances, Ingredient, joined
from .model import FeatureModel, NetworkModel, open_run, processes
from .table_recipe import settings_of
from .table_schema import Golden, Linear, Oasis, Row, TableRecipe, Trained


class TableRows:
    """Makes a table's rows, one after another; each may build on those before.

    Args:
        recipe: The table's.
        folder: The table's; models that are trained lie in ``models`` therein.
        device: "auto" or a torch device.
        reporter: Shows progress.
    Attributes:
        source: The rated triplets' data set.
        data: The rated triplets, their images at the size that features look at.
        done: The rows made so far, by name.
    """

    def __init__(self, recipe: TableRecipe, folder: Path, device: str, reporter: Reporter) -> None:
        self.recipe, self.folder, self.device, self.reporter = recipe, folder, device, reporter
        self.source: SimilarityTriplets = dataset_of(recipe.rated.dataset, "all", reporter.update)
        self.learning = dataset_of(recipe.learn_from.dataset, "train", reporter.update)
        self.data = self._rated(recipe.rated.image_size)
        self.done: dict[str, Ingredient] = {}
        self._relevance: Any = None

    def make(self, row: Row) -> Ingredient:
        """Make the row, and keep it for those that build on it."""
        match row.content:
            case Slot() as slot:
                made = self._feature(row, slot)
            case Trained() as trained:
                made = self._model(row, trained)
            case Oasis() as oasis:
                made = self._oasis(oasis)
            case Linear() as linear:
                made = self._linear(linear)
            case Golden() as golden:
                made = self._golden(golden)
        self.done[row.name] = made
        return made

    # -- kinds -----------------------------------------------------------------------------------------------------

    def _feature(self, row: Row, slot: Slot) -> Ingredient:
        transformer, learn = build_feature(slot), self._learn(self.recipe.learn_from.image_size)
        seen = getattr(transformer, "seen", "not said")  # of a user's own, which need not say it
        if seen != "nothing":
            self.reporter.note(f"{row.name}: learns from {len(learn)} images")
        transformer.fit(learn.batch(np.arange(len(learn)))[0].numpy(), learn.labels.numpy())
        how = FeatureModel(row.name, transformer).distance
        rated = self._stored(transformer, self.data.images)
        learned = self._stored(transformer, learn) if self._is_learned_on(row) else None
        return Ingredient.of_features(how, rated, self.data, seen, learned)

    def _model(self, row: Row, trained: Trained) -> Ingredient:
        model = open_run(self._run(row, trained), device=self.device)
        update = self.reporter.update
        rated = model.embed(self._rated(model.image_size).images, progress=update).numpy()
        learned = None
        if self._is_learned_on(row):
            learned = model.embed(self._learn(model.image_size), progress=update).numpy()
        begun = [] if trained.weights_from is None else [self.done[trained.weights_from].seen]
        seen = joined(*begun, *_seen(model, trained))
        return Ingredient.of_features(model.distance, rated, self.data, seen, learned)

    def _oasis(self, settings: Oasis) -> Ingredient:
        on = self.done[settings.on]
        oasis = OASIS(
            steps=settings.steps,
            aggressiveness=settings.aggressiveness,
            normalize=True,
            seed=self.recipe.seed,
        )
        oasis.fit(on.learned, **self._triplets(), progress=self.reporter.update)
        return Ingredient.of_features(oasis, on.features, self.data, joined(on.seen, oasis.seen), on.learned)

    def _linear(self, settings: Linear) -> Ingredient:
        parts = [self.done[name] for name in settings.on]
        linear = LinearEmbedding(size=settings.size, steps=settings.steps, seed=self.recipe.seed)
        learned = normalized_blocks([part.learned for part in parts])
        linear.fit(learned, **self._triplets(), progress=self.reporter.update)
        features = linear.transform(normalized_blocks([part.features for part in parts]))
        seen = joined(*(part.seen for part in parts), linear.seen)
        return Ingredient.of_features("euclidean", features, self.data, seen, linear.transform(learned))

    def _golden(self, settings: Golden) -> Ingredient:
        parts = [self.done[name] for name in settings.on]
        distances = GoldenDistances(
            [part.distances for part in parts], self.data, folds=settings.folds, seed=self.recipe.seed
        )
        return Ingredient(distances, joined(*(part.seen for part in parts), distances.golden.seen))

    # -- what is learned from --------------------------------------------------------------------------------------

    def _learn(self, size: int) -> PackedImages:
        """The images that are learned from, at this size."""
        settings = self.recipe.learn_from
        indices = balanced_sample(self.learning.labels, settings.images, self.recipe.seed)
        about = [dataset_identity(settings.dataset), settings.images, self.recipe.seed, size]
        folder = cache_root(self.recipe.cache, "packed") / f"learn-{short_hash(about)}"
        update = self.reporter.update
        return PackedImages.build(self.learning, folder, size=size, indices=indices, progress=update)

    def _triplets(self) -> dict[str, Any]:
        """What triplets are drawn by: classes and, where the recipe has one, a relevance within them."""
        slot, learn = self.recipe.learn_from.relevance, self._learn(self.recipe.learn_from.image_size)
        if slot is not None and self._relevance is None:
            folder = cache_root(self.recipe.cache, "features") / learn.folder.name
            unfitted = relevance_of(slot, folder, self.recipe.seed)
            self._relevance = unfitted.fit(learn, learn.labels, progress=self.reporter.update)
        return {"labels": learn.labels.numpy(), "relevance": self._relevance}

    def _is_learned_on(self, row: Row) -> bool:
        """Whether a row learns from this one's features."""
        others = [other for other in self.recipe.rows if isinstance(other.content, Oasis | Linear)]
        return any(row.name in other.ingredients for other in others)

    # -- images and features ---------------------------------------------------------------------------------------

    def _rated(self, size: int) -> RatedData:
        cache = self.recipe.cache
        return rated_data(self.source, image_size=size, cache=cache, progress=self.reporter.update)

    def _stored(self, transformer: Any, images: PackedImages) -> Array:
        """Features, computed once and kept in the cache."""
        place = cache_root(self.recipe.cache, "features") / images.folder.name / folder_name(transformer)
        update = self.reporter.update
        return StoredFeatures.build(
            transformer, images, place, n_jobs=processes(images), progress=update
        ).features

    # -- models ----------------------------------------------------------------------------------------------------

    def _run(self, row: Row, trained: Trained) -> Path:
        """The folder of the row's run, which is run now where it is not finished."""
        folder = self._folder(row)
        if trained.recipe is None:
            return folder
        settings = settings_of(trained, self.recipe)
        if trained.weights_from is not None:
            weights = self._folder(self.recipe.row(trained.weights_from)) / "checkpoint" / "best.pt"
            settings.append(f"trunk.weights={weights.resolve()}")
        recipe = load_recipe(trained.recipe, settings)
        resume = (folder / "recipe.yaml").exists()
        if resume and load_recipe(folder / "recipe.yaml") != recipe:
            raise RecipeError(
                f"{folder}: was trained by another recipe than {trained.recipe} is now; remove it, or start the table "
                "in another folder"
            )
        if not is_finished(folder):
            run_experiment(recipe, folder, device=self.device, resume=resume, reporter=self.reporter)
        return folder

    def _folder(self, row: Row) -> Path:
        if row.model is not None and row.model.run is not None:
            return Path(row.model.run)
        return self.folder / "models" / row.folder_name


def _seen(model: NetworkModel, trained: Trained) -> list[str]:
    """What a run's network learned from, as its recipe tells."""
    recipe = model.recipe
    if recipe is None:
        return ["unknown"]
    own_triplets = any(
        isinstance(stage, RankingStage)
        and stage.sampler is not None
        and "triplets" in stage.sampler.arguments
        for stage in recipe.stages
    )
    seen = [
        "triplets of its data set"
        if own_triplets or recipe.data.dataset.type == "SimilarityTriplets"
        else CLASSES
    ]
    if recipe.relevance is not None:
        seen.append(RELEVANCE)
    if model.begun_with_weights and trained.weights_from is None:
        seen.append("what its first weights had seen")
    return seen
