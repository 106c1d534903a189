"""Losses: what a triplet costs. They are PML losses, for `loss_funcs={"metric_loss": ...}`."""

from dr_plugin.losses.deep_ranking import DeepRankingLoss
from dr_plugin.losses.gathered import GatheredLoss
from dr_plugin.losses.lrml import LRMLLoss
from dr_plugin.losses.memory import CrossBatchMemory
from dr_plugin.losses.pddm import PDDMLoss
from dr_plugin.losses.pddm_unit import PDDMUnit
from dr_plugin.losses.reservoir_memory import ReservoirMemory

__all__ = [
    "CrossBatchMemory",
    "DeepRankingLoss",
    "GatheredLoss",
    "LRMLLoss",
    "PDDMLoss",
    "PDDMUnit",
    "ReservoirMemory",
]
