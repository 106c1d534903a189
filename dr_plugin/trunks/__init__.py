"""Trunks: image -> embedding."""

from dr_plugin.trunks.convnet_embedding import ConvNetEmbedding
from dr_plugin.trunks.deep_ranking import DeepRankingTrunk
from dr_plugin.trunks.normalized import NormalizedTrunk
from dr_plugin.trunks.small import SmallConvNet, SmallResNet
from dr_plugin.trunks.weights import load_weights

__all__ = [
    "ConvNetEmbedding",
    "DeepRankingTrunk",
    "NormalizedTrunk",
    "SmallConvNet",
    "SmallResNet",
    "load_weights",
]
