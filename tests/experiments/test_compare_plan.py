"""The variants of a comparison: what they may set, what has to be equal, and each fault in one line."""

from pathlib import Path

import pytest

from dr_plugin.experiments import recipe_file
from dr_plugin.experiments.compare_plan import Variant, join, plan_variants, shared_stages
from dr_plugin.experiments.recipe import Recipe, RecipeError, load_recipe

RECIPE = """\
data:
  dataset:
    type: Digits
  image_size: 16
trunk:
  type: DeepRankingTrunk
  convnet:
    type: SmallConvNet
  embedding_size: 8
stages:
  - name: softmax
    epochs: 2
    batch_size: 30
    optimizer:
      type: SGD
      lr: 0.1
  - name: fine
    kind: ranking
    epochs: 1
    batch_size: 6
    loss:
      type: ContrastiveLoss
    optimizer:
      type: SGD
      lr: 0.01
"""
COMPARE = """\
compare:
  seeds: [3, 5]
  variants:
    contrastive: {}
    uniform:
      stages.1.miner: {type: UniformTripletMiner}
      stages.fine.loss: {type: DeepRankingLoss}
    proxies:
      stages.fine.loss: {type: ProxyAnchorLoss}
      stages.fine.loss_optimizer: {type: SGD, lr: 1.0}
"""


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # so that errors name the file "x.yaml"


def load(text: str = RECIPE + COMPARE, *overrides: str, name: str = "x") -> Recipe:
    Path(f"{name}.yaml").write_text(text, encoding="utf-8")
    return load_recipe(f"{name}.yaml", overrides)


def variants(recipe: Recipe) -> list[Variant]:
    return plan_variants(recipe, recipe_file.parse(recipe.to_yaml(), "resolved.yaml"))


def faults(function, *arguments) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        function(*arguments)
    return caught.value.lines


def joined(**texts: str) -> Recipe:
    return join([(f"{name}.yaml", load(text, name=name)) for name, text in texts.items()])


def test_variant_is_the_recipe_with_what_it_sets() -> None:
    found = variants(load())
    assert [variant.name for variant in found] == ["contrastive", "uniform", "proxies"]
    assert found[0].settings == {}
    assert found[1].settings == {
        "stages.fine.miner": {"type": "UniformTripletMiner"},
        "stages.fine.loss": {"type": "DeepRankingLoss"},
    }
    settings = ["stages.1.miner={type: UniformTripletMiner}", "stages.1.loss={type: DeepRankingLoss}"]
    assert found[1].recipe == load(RECIPE, *settings, "name=x-uniform", "seed=3")
    seeded = found[1].seeded(5)
    assert (seeded.seed, seeded.name, seeded.compare) == (5, "x-uniform-seed5", None)


def test_stages_before_the_first_that_differs_are_shared() -> None:
    recipe = load()
    assert shared_stages(recipe, variants(recipe)) == 1
    earlier = RECIPE.replace(
        "name: softmax", "name: first\n    kind: ranking\n    loss: {type: ContrastiveLoss}"
    )
    text = earlier + COMPARE + "    early:\n      stages.first.loss: {type: SupConLoss}\n"
    recipe = load(text)
    assert shared_stages(recipe, variants(recipe)) == 0


def test_relevance_that_differs_parts_all_ranking_stages() -> None:
    """Any of them may take it, also one that no variant sets a slot of."""
    earlier = RECIPE.replace(
        "name: softmax", "name: first\n    kind: ranking\n    loss: {type: ContrastiveLoss}"
    )
    text = (
        earlier
        + "compare:\n  seeds: [0]\n  variants:\n    a: {}\n    b: {relevance: {type: GoldenFeatures}}\n"
    )
    recipe = load(text)
    assert shared_stages(recipe, variants(recipe)) == 0


def test_variants_that_differ_in_relevance_alone_share_all_stages_but_the_last() -> None:
    text = (
        RECIPE
        + "compare:\n  seeds: [0]\n  variants:\n    a: {}\n    b: {relevance: {type: GoldenFeatures}}\n"
    )
    recipe = load(text)
    assert shared_stages(recipe, variants(recipe)) == 1


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        (
            "stages.1.miner: {type: UniformTripletMiner}",
            "stages.1.epochs: 3",
            "x.yaml:31: compare.variants.uniform.stages.1.epochs: got stages.1.epochs, expected sampler, stream, "
            "miner, loss, loss_optimizer of a stage, or relevance: all else is equal in what is compared",
        ),
        (
            "stages.1.miner: {type: UniformTripletMiner}",
            "trunk.embedding_size: 9",
            "x.yaml:31: compare.variants.uniform.trunk.embedding_size: got trunk.embedding_size, expected sampler",
        ),
        (
            "stages.1.miner: {type: UniformTripletMiner}",
            "stages.1.los: null",
            "or relevance: all else is equal in what is compared; did you mean loss?",
        ),
        (
            "stages.1.miner: {type: UniformTripletMiner}",
            "stages: {fine: {miner: null}}",
            "got stages as a mapping, expected each slot by its whole key, such as stages.ranking.loss",
        ),
        (
            "stages.1.miner: {type: UniformTripletMiner}",
            "stages.coarse.miner: null",
            "x.yaml:31: stages: got coarse, expected an index below 2 or one name of softmax, fine",
        ),
        (
            "{type: UniformTripletMiner}",
            "{type: UniformTripletMine}",
            'x.yaml:31: stages[1].miner.type: got "UniformTripletMine", expected one of',
        ),
        (
            "    proxies:\n",
            "    again: {}\n    proxies:\n",
            "x.yaml:33: compare.variants.again: is contrastive again, expected another",
        ),
        ("seeds: [3, 5]", "seeds: []", "x.yaml:27: compare.seeds: got [], expected at least 1 entries"),
        (
            "seeds: [3, 5]",
            "seeds: [3, 3]",
            "x.yaml:27: compare.seeds: got [3, 3], expected each of them once",
        ),
        (
            "seeds: [3, 5]",
            "seeds: [3]\n  figures: [val.precision_at_7]",
            'x.yaml:28: compare.figures[0]: got "val.precision_at_7", expected such as val.precision_at_30',
        ),
        ("    proxies:\n", "    Uniform:\n", "expected names that differ in more than capitals"),
        ("    proxies:\n", "    a/b:\n", "expected letters, digits, - and _ only"),
        (
            "compare:\n",
            "sweep:\n  seeds: [0]\ncompare:\n",
            "x.yaml:26: sweep: got a sweep beside compare, expected one of the two",
        ),
    ],
)
def test_fault_is_told_with_its_place(old: str, new: str, wanted: str) -> None:
    lines = faults(load, (RECIPE + COMPARE).replace(old, new))
    assert any(wanted in line for line in lines), lines


def test_one_variant_is_no_comparison() -> None:
    text = RECIPE + "compare:\n  seeds: [0]\n  variants:\n    only: {}\n"
    assert faults(load, text) == [
        'x.yaml:28: compare.variants: got {"only": {}}, expected at least 2 entries'
    ]


# -- several recipes -------------------------------------------------------------------------------------------------

PROXIES = RECIPE.replace(
    "type: ContrastiveLoss", "type: ProxyAnchorLoss\n    loss_optimizer: {type: SGD, lr: 1.0}"
)


def test_recipes_become_the_variants_of_one() -> None:
    recipe = joined(one=RECIPE, two=PROXIES)
    assert recipe.name == "one-vs-two"
    assert recipe.compare is not None
    assert recipe.compare.seeds == [0, 1, 2]
    assert recipe.compare.variants == {
        "one": {},
        "two": {
            "stages.fine.loss": {"type": "ProxyAnchorLoss"},
            "stages.fine.loss_optimizer": {"type": "SGD", "lr": 1.0},
        },
    }
    again = load(recipe.to_yaml(), name="resolved")
    assert again == recipe
    found = variants(recipe)
    assert [variant.recipe.stages for variant in found] == [load(RECIPE).stages, load(PROXIES).stages]


def test_recipe_with_a_comparison_brings_its_variants_and_seeds() -> None:
    recipe = joined(many=RECIPE + COMPARE, supcon=RECIPE.replace("ContrastiveLoss", "SupConLoss"))
    assert recipe.compare is not None
    assert list(recipe.compare.variants) == ["contrastive", "uniform", "proxies", "supcon"]
    assert recipe.compare.seeds == [3, 5]
    settings = recipe.compare.variants["uniform"]
    assert settings["stages.fine.miner"] == {"type": "UniformTripletMiner"}


def test_seeds_given_replace_those_of_the_recipe() -> None:
    recipe = load()
    assert join([("x.yaml", recipe)], range(4)).compare.seeds == [0, 1, 2, 3]
    assert join([("x.yaml", recipe)]) == recipe


def test_comparisons_with_other_seeds_or_figures_are_not_joined() -> None:
    one = RECIPE + COMPARE
    other = one.replace("contrastive:", "plain:").replace("uniform:", "even:").replace("proxies:", "anchors:")
    seeds, figures = (
        other.replace("[3, 5]", "[3]"),
        other.replace("[3, 5]", "[3, 5]\n  figures: [val.recall_at_1]"),
    )
    assert faults(lambda: joined(one=one, two=seeds)) == [
        "RECIPE: got comparisons with different compare.seeds, expected the same in all"
    ]
    figures = figures.replace("image_size: 16", "image_size: 16").replace(
        "compare:", "evaluation: {recall_at: [1]}\ncompare:"
    )
    assert faults(lambda: joined(one=one, two=figures))[0].startswith(
        "RECIPE: got comparisons with different compare.fig"
    )


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ("lr: 0.01", "lr: 0.02", "stages[1].optimizer.lr: got 0.02, expected 0.01 as in one.yaml"),
        ("epochs: 1", "epochs: 4", "stages[1].epochs: got 4, expected 1 as in one.yaml"),
        ("embedding_size: 8", "embedding_size: 9", "trunk.embedding_size: got 9, expected 8 as in one.yaml"),
        (
            "image_size: 16",
            "image_size: 16\n  classes: 5",
            "data.classes: got 5, expected null as in one.yaml",
        ),
        (
            "type: SmallConvNet",
            "type: SmallConvNet\n    channels: [4]",
            "trunk.convnet.channels: got [4], expected null",
        ),
    ],
)
def test_recipes_that_differ_in_what_must_be_equal_are_refused(old: str, new: str, wanted: str) -> None:
    two = PROXIES.replace(old, new)
    lines = faults(lambda: joined(one=RECIPE, two=two))
    assert len(lines) == 1
    assert lines[0].startswith(f"two.yaml: {wanted}")
    assert lines[0].endswith(
        "what is compared may differ in sampler, stream, miner, loss, loss_optimizer of a stage, or relevance"
    )


def test_recipes_with_other_numbers_of_stages_are_refused() -> None:
    start, end = RECIPE.index("  - name: softmax"), RECIPE.index("  - name: fine")
    lines = faults(lambda: joined(one=RECIPE, two=PROXIES[:start] + PROXIES[end:]))
    assert lines[0].startswith("two.yaml: stages: got [")


def test_what_is_no_comparison_is_refused() -> None:
    assert faults(lambda: joined(one=RECIPE))[0].startswith("RECIPE: got one recipe without compare")
    same = [("a/x.yaml", load(RECIPE)), ("b/x.yaml", load(PROXIES))]
    assert faults(join, same) == [
        'a/x.yaml and b/x.yaml: name: got "x" twice, expected a name of its own for each variant'
    ]
    swept = RECIPE + "sweep:\n  seeds: [0]\n"
    assert faults(lambda: joined(one=RECIPE, two=swept))[0].startswith(
        "two.yaml: sweep: got a sweep, expected a single"
    )
    assert faults(lambda: joined(one=RECIPE, two=RECIPE)) == [
        "the comparison:1: compare.variants.two: is one again, expected another"
    ]
