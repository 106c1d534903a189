"""How good a ranking is: exact nearest neighbours, and metrics as pure functions and inside PML."""

from dr_plugin.metrics.calculator import RankingAccuracyCalculator
from dr_plugin.metrics.concordance import concordance, concordance_score
from dr_plugin.metrics.knn import ExactKNN, nearest
from dr_plugin.metrics.precision_at_k import precision_at_k
from dr_plugin.metrics.recall_at_k import recall_at_k

__all__ = [
    "ExactKNN",
    "RankingAccuracyCalculator",
    "concordance",
    "concordance_score",
    "nearest",
    "precision_at_k",
    "recall_at_k",
]
