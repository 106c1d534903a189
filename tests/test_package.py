"""What people import, what lies in the package, and the code that the README shows."""

import importlib
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from dr_plugin.experiments import shipped
from dr_plugin.experiments.recipe import RankingStage, SoftmaxStage, load_recipe

README = Path(__file__).parents[1] / "README.md"
RECIPES = README.parent / "docs" / "recipes.md"
PUBLIC = {
    "datasets": [
        "BatchAugment",
        "ClassFolders",
        "Digits",
        "DownloadError",
        "PackedImages",
        "RatedTripletsError",
        "SimilarityTriplets",
        "TinyImageNet",
        "TripletStream",
        "rated_triplets",
        "refuse_rated",
        "write_shards",
    ],
    "losses": [
        "CrossBatchMemory",
        "DeepRankingLoss",
        "GatheredLoss",
        "LRMLLoss",
        "PDDMLoss",
        "PDDMUnit",
        "ReservoirMemory",
    ],
    "metrics": [
        "ApproximateKNN",
        "ExactKNN",
        "PairedTest",
        "RankingAccuracyCalculator",
        "ScoreAtTopK",
        "SimilarityPrecision",
        "TripletRanks",
        "approximate_recall",
        "build_index",
        "concordance",
        "concordance_score",
        "hit_rate_at_k",
        "load_index",
        "mean_average_precision",
        "nearest",
        "paired_test",
        "pools_by_group",
        "precision_at_k",
        "recall_at_k",
        "recalls_at_k",
        "rerank",
        "save_index",
        "scaled_k",
        "score_at_top_k",
        "search_index",
        "similarity_precision",
        "triplet_ranks",
        "triplets_right",
    ],
    "miners": ["HardQuadrupletMiner", "RankedNegativeMiner", "ReservoirTripletMiner", "UniformTripletMiner"],
    "relevance": [
        "BaseRelevance",
        "FeatureRelevance",
        "FunctionRelevance",
        "GoldenFeatures",
        "MultiLabelRelevance",
        "OASIS",
        "Relevance",
        "StoredRelevance",
        "TableRelevance",
    ],
    "relevance.features": [
        "FisherVector",
        "HOG",
        "L1HashKPCA",
        "LABHistogram",
        "SIFTHistogram",
        "SPMKTexton",
        "Wavelet",
    ],
    "reservoirs": ["ClassReservoirs", "WeightedReservoir"],
    "samplers": [
        "DistributedBatchSampler",
        "OfflineTripletSampler",
        "ReservoirTripletSampler",
        "UniformTripletSampler",
    ],
    "trunks": [
        "ConvNetEmbedding",
        "DeepRankingTrunk",
        "NormalizedTrunk",
        "SmallConvNet",
        "SmallResNet",
        "load_weights",
    ],
}


@pytest.mark.parametrize("family", PUBLIC)
def test_public_names_are_these(family):
    module = importlib.import_module(f"dr_plugin.{family}")
    assert sorted(module.__all__) == PUBLIC[family]
    assert all(getattr(module, name).__doc__ for name in module.__all__)


def test_import_of_the_package_alone_is_light():
    code = "import sys, dr_plugin; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_package_carries_types_recipes_and_templates():
    package = Path(importlib.import_module("dr_plugin").__file__).parent
    assert (package / "py.typed").exists()
    assert {"quickstart", "tiny_uniform", "tiny_uniform_cpu", "tiny_uniform_paper"} <= set(shipped.names())
    templates = {
        path.name for room in ("experiments", "evaluation") for path in (package / room).glob("*.jinja")
    }
    pages = {
        f"{name}.{kind}.jinja" for name in ("report", "sweep", "compare", "table") for kind in ("html", "md")
    }
    notes = {f"{name}_notes.jinja" for name in ("sweep", "compare", "table")}
    assert templates == pages | notes | {"page_style.jinja"}
    assert (package / "datasets" / "rated_fingerprints.npz").stat().st_size < 120_000


def test_readme_examples_train():
    """The README's Python blocks, one after the other, on two classes of noise (at 32 px, to be quick)."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) == 2
    assert len(blocks[0].splitlines()) == 12
    labels = [0, 1] * 32
    images = [(torch.randn(3, 32, 32), label) for label in labels]
    names = {"train_set": images, "labels": labels, "tags": torch.rand(64, 5).numpy() < 0.5}
    names["tags"][:, 0] = True
    for block in blocks:
        code = (
            block.replace("train_set,", "train_set, dataloader_num_workers=0,")
            .replace("=64)", "=32)")
            .replace("epochs=5", "epochs=1")
        )
        with warnings.catch_warnings():
            # PML formats the loss with %, which newer torch warns of.
            warnings.filterwarnings("ignore", message="Converting a tensor", category=UserWarning)
            exec(compile(code, str(README), "exec"), names)
    assert names["trunk"](torch.randn(2, 3, 32, 32)).shape == (2, 128)
    assert names["sampler"].counters["accepted"] == 42  # two batches of 21 triplets


def test_documented_recipe_is_good_and_names_every_key(tmp_path):
    """The block in docs/recipes.md loads, and shows the defaults as they are."""
    block = re.search(r"```yaml\n(.*?)```", RECIPES.read_text(), flags=re.DOTALL).group(1)
    (tmp_path / "all.yaml").write_text(block)
    recipe = load_recipe(tmp_path / "all.yaml")
    keys = [
        recipe,
        recipe.data,
        recipe.evaluation,
        recipe.report,
        recipe.checkpoint,
        recipe.limits,
        *recipe.stages,
    ]
    shared = {name for name in SoftmaxStage.model_fields if name in RankingStage.model_fields} | {"kind"}
    for section in keys:
        missing = set(type(section).model_fields) - section.model_fields_set
        assert missing <= (shared if section is recipe.stages[1] else {"kind", "name"})
        for name in section.model_fields_set:
            field = type(section).model_fields[name]
            if not field.is_required() and name not in ("train", "kind"):
                assert getattr(section, name) == field.get_default(call_default_factory=True), name


def test_readme_commands_name_recipes_that_exist():
    named = set(re.findall(r"recipes/(\w+)\.yaml", README.read_text()))
    assert named
    assert named <= set(shipped.names())
