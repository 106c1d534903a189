"""Whole runs on classes that are not trained on, with a similarity unit that re-ranks."""

import json

import pytest
import torch

from dr_plugin.evaluation.data import LabelledData
from dr_plugin.evaluation.evaluate import evaluate
from dr_plugin.evaluation.model import open_run
from dr_plugin.evaluation.search import search_run
from dr_plugin.evaluation.search_gallery import run_gallery
from dr_plugin.experiments import checkpoint, run
from dr_plugin.experiments.examples import ranked_examples
from dr_plugin.experiments.recipe import RecipeError, load_recipe
from dr_plugin.experiments.run import run_experiment
from dr_plugin.losses import PDDMLoss
from dr_plugin.metrics import recall_at_k

RECIPE = """\
data:
  dataset: {{type: TinyImageNet, root: {root}}}
  classes: 4
  selection: 2
  image_size: 16
  cache: {cache}
trunk:
  type: DeepRankingTrunk
  convnet: {{type: SmallConvNet, channels: [8]}}
  embedding_size: 8
stages:
  - name: ranking
    epochs: 2
    batch_size: 8
    sampler: {{type: MPerClassSampler, m: 2}}
    miner: {{type: HardQuadrupletMiner}}
    loss: {{type: PDDMLoss}}
    optimizer: {{type: SGD, lr: 0.01}}
    loss_optimizer: {{type: SGD, lr: 0.1}}
evaluation:
  gallery: val
  rerank: 10
  k: 3
  recall_at: [1, 2]
  baselines: [untrained, pixels]
report: {{queries: 3, top: 4, bottom: 4}}
"""


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory, make_tiny_imagenet):
    """4 classes to train on and 3 others, of 8 + 2 images each."""
    folder = tmp_path_factory.mktemp("apart")
    root = make_tiny_imagenet(folder / "data", classes=7, train=8, val=2, size=20)
    path = folder / "apart.yaml"
    path.write_text(RECIPE.format(root=root, cache=folder / "cache"))
    return path


@pytest.fixture(scope="module")
def whole(recipe_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    seen = {}
    conclude = run.conclude
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run, "conclude", lambda *given: seen.update(given=given) or conclude(*given))
        result = run_experiment(load_recipe(recipe_file), folder, device="cpu")
    context, trunk, _ = seen["given"]
    return folder, result, context, trunk


def ranking(trunk, context, similarity=None, among=None):
    """Neighbours of each val image by loops: by distance, or the first `among` of these by a similarity."""
    images, labels = context.data.val.batch(torch.arange(len(context.data.val)))
    with torch.no_grad():
        found = trunk.eval()(context.embedder().augment(images, training=False))
    rows = []
    for i, one in enumerate(found):
        others = [j for j in range(len(found)) if j != i]
        row = sorted(others, key=lambda j, one=one: float((one - found[j]).square().sum()))
        if similarity is not None:
            top = sorted(row[:among], key=lambda j, one=one: -float(similarity(one[None], found[j][None])))
            row = [*top, *row[among:]]
        rows.append(row)
    return labels[torch.tensor(rows)], labels


def test_val_holds_all_images_of_the_classes_not_trained_on(whole):
    _, result, context, _ = whole
    assert context.data.class_names == [f"stripes {i}, pattern {i}" for i in range(4)]
    assert context.data.val.class_names == [f"stripes {i}, pattern {i}" for i in range(4, 7)]
    assert torch.bincount(context.data.val.labels).tolist() == [10, 10, 10]  # of both official splits
    assert (result.metrics["gallery"], result.metrics["classes"]) == ("val", {"train": 4, "val": 3})


def test_figures_are_of_val_against_val_without_itself(whole):
    _, result, context, trunk = whole
    neighbors, labels = ranking(trunk, context)
    for at in (1, 2):
        right = float(recall_at_k(neighbors, labels, at))
        assert result.metrics["val"][f"recall_at_{at}"] == pytest.approx(right)
    precision = (neighbors[:, :3] == labels[:, None]).float().mean()
    assert result.metrics["val"]["precision_at_3"] == pytest.approx(float(precision))
    assert set(result.metrics["baselines"]) == {"untrained", "pixels"}


def test_reranked_figures_are_of_the_best_units_order_of_the_nearest(whole):
    folder, result, context, trunk = whole
    weights = checkpoint.load(folder / "checkpoint" / "best.pt")["models"]["loss"]
    loss = PDDMLoss(embedding_size=8)
    loss.load_state_dict(weights)
    with torch.no_grad():
        neighbors, labels = ranking(trunk, context, loss.unit, among=10)
    for at in (1, 2):
        right = float(recall_at_k(neighbors, labels, at))
        assert result.metrics["val_reranked"][f"recall_at_{at}"] == pytest.approx(right)
    assert result.metrics["val_reranked"] != result.metrics["val"]


def test_report_says_what_was_ranked(whole):
    page = (whole[0] / "report" / "report.html").read_text()
    text = (whole[0] / "report" / "report.md").read_text()
    for shown in (page, text):
        assert "No class of val was trained on" in shown
        assert "training images by Euclidean distance" not in shown
        assert "This model, 10 nearest re-ranked" in shown
        assert "over-fitting): more augmentation" not in shown
        assert "stripes 5" in shown  # the classes of the queries and of what they are taken for
        assert "stripes 1<" not in shown
    assert page.count("query: stripes") == 3


def test_examples_leave_the_query_out(whole):
    _, _, context, trunk = whole
    val = context.embedder()(trunk, context.data.val)
    for example in ranked_examples(context, val, val):
        shown = [*example.nearest, *example.farthest]
        assert len(example.nearest) == len(example.farthest) == 4
        assert all((neighbor.image != example.image).any() for neighbor in shown)
        distances = [neighbor.distance for neighbor in example.nearest]
        assert distances == sorted(distances)


def test_finished_run_concludes_again_to_the_same_figures(whole, recipe_file, tmp_path, monkeypatch):
    """A kill in the evaluation: the unit's weights come from best.pt."""
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(run, "conclude", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run_experiment(load_recipe(recipe_file), tmp_path / "run", device="cpu")
    run_experiment(load_recipe(recipe_file), tmp_path / "run", device="cpu", resume=True)
    one, two = (json.loads((folder / "metrics.json").read_text()) for folder in (whole[0], tmp_path / "run"))
    assert one["val"] == two["val"]
    assert one["val_reranked"] == two["val_reranked"]


def test_checkpoint_without_the_losss_weights_is_one_clear_error(whole, recipe_file, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(run, "conclude", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run_experiment(load_recipe(recipe_file), folder, device="cpu")
    state = checkpoint.load(folder / "checkpoint" / "best.pt")
    del state["models"]["loss"]
    checkpoint.save(folder / "checkpoint" / "best.pt", state)
    with pytest.raises(
        ValueError, match=r"evaluation\.rerank: got 10, but .*best\.pt holds no similarity unit"
    ):
        run_experiment(load_recipe(recipe_file), folder, device="cpu", resume=True)


def test_relevance_is_not_measured_on_classes_that_it_does_not_know(recipe_file, tmp_path):
    overrides = ["relevance={type: GoldenFeatures}", "data.packed_size=64", "evaluation.baselines=[]"]
    result = run_experiment(load_recipe(recipe_file, overrides), tmp_path / "run", device="cpu")
    assert "in_class" not in result.metrics


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.classes=null"], r"data\.classes: got 7 classes to train on, which leaves 0 of 7"),
        (["data.unseen_classes=4"], r"data\.unseen_classes: got 4, expected at most 3"),
        (
            ["evaluation.rerank=30"],
            r"evaluation\.rerank: got 30, expected at most 29, the val images without",
        ),
        (["evaluation.k=30", "evaluation.train=false"], r"evaluation\.k: got 30, expected at most 24"),
    ],
)
def test_data_that_do_not_fit_are_one_clear_error(recipe_file, tmp_path, overrides, message):
    with pytest.raises(RecipeError, match=message):
        run_experiment(load_recipe(recipe_file, overrides), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


UNIT = "the similarity unit of the stage's loss"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [
                "stages.0.loss={type: TripletMarginLoss}",
                "stages.0.loss_optimizer=null",
                "evaluation.rerank=null",
            ],
            f"miner.similarity: got nothing, expected {UNIT}, which PDDMLoss has: HardQuadrupletMiner needs it",
        ),
        (
            [
                "stages.0.loss={type: TripletMarginLoss}",
                "stages.0.loss_optimizer=null",
                "stages.0.miner=null",
            ],
            "rerank: got 10, expected null: the last stage's loss, TripletMarginLoss, has no similarity unit",
        ),
        (["stages.0.loss.embedding_size=9"], "loss.embedding_size: got 9, expected 8, the trunk's"),
        (["stages.0.miner.quadruplets=0"], "miner.quadruplets: got 0"),
        (["evaluation.gallery=train", "data.unseen_classes=2"], "unseen_classes: got 2, expected null, or"),
        (
            ["data.classes=[a, b, c, e]", "data.unseen_classes=[c, d]"],
            'unseen_classes: got "c", which data.classes trains on, expected other classes',
        ),
        (["data.unseen_classes=1"], "unseen_classes: got 1, expected null for all, a number from 2"),
        (["evaluation.rerank=1"], "rerank: got 1, expected at least 2"),
        (["evaluation.gallery=test"], 'gallery: got "test", expected one of train, val'),
    ],
)
def test_recipe_that_does_not_fit_is_found_before_data_are_touched(recipe_file, overrides, message):
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_file, overrides)
    assert message in str(caught.value)
    assert len(caught.value.lines) == 1


@pytest.mark.parametrize(
    "loss",
    [
        "{type: MultipleLosses, losses: [{type: ContrastiveLoss}, {type: PDDMLoss}]}",
        "{type: MultipleLosses, losses: {pairs: {type: ContrastiveLoss}, unit: {type: PDDMLoss}}}",
    ],
)
def test_unit_inside_another_loss_is_found(recipe_file, tmp_path, loss):
    overrides = [f"stages.0.loss={loss}", "evaluation.baselines=[]", "limits.steps=2"]
    result = run_experiment(load_recipe(recipe_file, overrides), tmp_path / "run", device="cpu")
    assert set(result.metrics["val_reranked"]) == {"precision_at_3", "recall_at_1", "recall_at_2"}


def test_loss_without_weights_leaves_none_in_the_checkpoint(recipe_file, tmp_path):
    plain = ["stages.0.loss={type: TripletMarginLoss}", "stages.0.loss_optimizer=null", "stages.0.miner=null"]
    overrides = [*plain, "evaluation.rerank=null", "evaluation.baselines=[]", "limits.steps=1"]
    result = run_experiment(load_recipe(recipe_file, overrides), tmp_path / "run", device="cpu")
    assert checkpoint.load(tmp_path / "run" / "checkpoint" / "best.pt")["models"].keys() == {"trunk"}
    assert not {"rerank", "val_reranked"} & result.metrics.keys()


def test_dr_evaluate_says_that_its_figures_are_others(whole, recipe_file):
    folder, _, context, _ = whole
    model = open_run(folder, device="cpu")
    train, val = context.data.train, context.data.val
    data = LabelledData("TinyImageNet", val, train, "apart")
    assert "val ranks train" in evaluate(model, data, k=3)["note"]
    model.recipe = load_recipe(recipe_file, ["evaluation.gallery=train"])
    assert "note" not in evaluate(model, data, k=3)


def test_dr_search_ranks_the_images_of_the_classes_not_trained_on(whole):
    folder, _, context, _ = whole
    recipe = open_run(folder, device="cpu").recipe
    gallery = run_gallery(recipe)
    val = context.data.val
    assert gallery.classes == [val.class_names[label] for label in val.labels.tolist()]
    for index in (0, 7, 8, len(val) - 1):  # of both official splits
        assert torch.equal(torch.from_numpy(gallery.pixels(index)), val.batch([index])[0][0])
        assert gallery.files[index].is_file()
    apart = recipe.evaluation.model_copy(update={"gallery": "train"})
    trained = run_gallery(recipe.model_copy(update={"evaluation": apart}))
    assert sorted(set(trained.classes)) == context.data.class_names
    assert trained.key != gallery.key


def test_dr_search_finds_others_of_a_class_not_trained_on(whole):
    folder, _, context, trunk = whole
    names = run_gallery(open_run(folder, device="cpu").recipe).names
    result = search_run(folder, [names[5]], k=len(names), device="cpu")
    assert result.images == len(names) == 3 * 10
    ranked, _ = ranking(trunk, context)
    labels = [context.data.val.class_names[label] for label in ranked[5].tolist()]
    assert [one.class_name for one in result.neighbors[0][1:]] == labels


def test_rerank_of_val_against_train_works_too(recipe_file, tmp_path):
    overrides = ["evaluation.gallery=train", "evaluation.baselines=[]", "data.classes=null", "limits.steps=2"]
    result = run_experiment(load_recipe(recipe_file, overrides), tmp_path / "run", device="cpu")
    assert "gallery" not in result.metrics
    assert result.metrics["val_reranked"].keys() == result.metrics["val"].keys()
