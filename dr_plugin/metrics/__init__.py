"""How good a ranking is: nearest neighbours, exact and approximate, and metrics as pure functions and inside PML."""

from dr_plugin.metrics.approximate_knn import ApproximateKNN, approximate_recall
from dr_plugin.metrics.calculator import RankingAccuracyCalculator
from dr_plugin.metrics.concordance import concordance, concordance_score
from dr_plugin.metrics.faiss_index import build_index, load_index, save_index, search_index
from dr_plugin.metrics.hit_rate_at_k import hit_rate_at_k
from dr_plugin.metrics.knn import ExactKNN, nearest
from dr_plugin.metrics.mean_average_precision import mean_average_precision
from dr_plugin.metrics.paired_test import PairedTest, paired_test
from dr_plugin.metrics.precision_at_k import precision_at_k
from dr_plugin.metrics.recall_at_k import recall_at_k, recalls_at_k
from dr_plugin.metrics.rerank import rerank
from dr_plugin.metrics.score_at_top_k import scaled_k, score_at_top_k
from dr_plugin.metrics.similarity_precision import SimilarityPrecision, similarity_precision, triplets_right
from dr_plugin.metrics.triplet_ranks import ScoreAtTopK, TripletRanks, pools_by_group, triplet_ranks

__all__ = [
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
]
