"""What variants differ in, in words; which have a part of ours; what is equal in all."""

from dr_plugin.experiments.compare_slots import changes, equal_part, ours

from .compare_cases import VARIANTS, variant


def test_words_name_what_differs() -> None:
    plain = variant("plain", {"type": "NTXentLoss"}, miner=None)
    assert changes([*VARIANTS[:3], plain]) == [
        {"miner": "UniformTripletMiner", "loss": "DeepRankingLoss"},
        {"miner": "UniformTripletMiner", "loss": "ContrastiveLoss"},
        {"miner": "UniformTripletMiner", "loss": "CrossBatchMemory (NTXentLoss)"},
        {"miner": "none", "loss": "NTXentLoss"},
    ]
    assert changes(VARIANTS[:2])[0] == {"loss": "DeepRankingLoss"}


def test_ours_is_what_no_other_library_has() -> None:
    distance = {"type": "TripletMarginLoss", "distance": {"type": "CosineSimilarity"}}
    mined = variant("mined", distance, miner={"type": "ReservoirTripletMiner", "buffer_size": 4})
    assert ours(VARIANTS) == [True, False, False, False]  # all have our miner, which tells nothing
    bare = variant("bare", distance, miner=None)
    inside = variant("inside", {"type": "CrossBatchMemory", "loss": {"type": "DeepRankingLoss"}}, miner=None)
    assert ours([mined, bare, inside]) == [True, False, True]


def test_equal_part_is_what_all_recipes_agree_in() -> None:
    faster = VARIANTS[1].recipe.model_copy(update={"precision": "bfloat16", "seed": 7})
    other = type(VARIANTS[1])("other", {}, faster)
    found = equal_part([VARIANTS[0], other])
    recipe = VARIANTS[0].recipe.model_dump(mode="json")
    assert found["data"] == recipe["data"]
    assert found["trunk"] == recipe["trunk"]
    assert {"precision", "seed", "name", "report"}.isdisjoint(found)
    (ranking,) = found["stages"]
    assert "loss" not in ranking
    assert ranking["sampler"] == recipe["stages"][0]["sampler"]
    assert equal_part(VARIANTS[:1])["precision"] == "float32"
