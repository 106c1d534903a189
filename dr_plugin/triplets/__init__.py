"""The paper's triplet draws, on labels and relevances alone: no images, no embeddings."""

from dr_plugin.triplets.draws import NoTripletError, TripletDraw, Weighting, check_draw
from dr_plugin.triplets.layout import ClassLayout
from dr_plugin.triplets.relevances import Relevance, TableRelevance, as_relevance, blocks, class_entries
from dr_plugin.triplets.relevant import RelevantTriplets
from dr_plugin.triplets.uniform import RANDOM_BITS, UniformTriplets, uniform_below

__all__ = [
    "RANDOM_BITS",
    "ClassLayout",
    "NoTripletError",
    "Relevance",
    "RelevantTriplets",
    "TableRelevance",
    "TripletDraw",
    "UniformTriplets",
    "Weighting",
    "as_relevance",
    "blocks",
    "check_draw",
    "class_entries",
    "uniform_below",
]
