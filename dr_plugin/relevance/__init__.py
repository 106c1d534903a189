"""How alike two images are: r(i, j) of section 5.1, from features, functions, tables or shared labels."""

from dr_plugin.relevance.base import BaseRelevance
from dr_plugin.relevance.feature import FeatureRelevance
from dr_plugin.relevance.function import FunctionRelevance
from dr_plugin.relevance.golden import GoldenFeatures
from dr_plugin.relevance.multi_label import MultiLabelRelevance
from dr_plugin.relevance.oasis import OASIS
from dr_plugin.relevance.stored import StoredRelevance
from dr_plugin.triplets.relevances import Relevance, TableRelevance

__all__ = [
    "OASIS",
    "BaseRelevance",
    "FeatureRelevance",
    "FunctionRelevance",
    "GoldenFeatures",
    "MultiLabelRelevance",
    "Relevance",
    "StoredRelevance",
    "TableRelevance",
]
