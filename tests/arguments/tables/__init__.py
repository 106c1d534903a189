"""One table a family of components, with an entry for each that is public."""

from collections.abc import Mapping

from . import datasets, learning, metrics, relevance, sampling, trunks
from .entries import Entry
from .small import IMAGES, LABELS, POINTS, SIMILAR

__all__ = ["ENTRIES", "EXEMPT", "IMAGES", "LABELS", "POINTS", "SIMILAR"]

ENTRIES: Mapping[str, Entry] = {
    **learning.ENTRIES,
    **sampling.ENTRIES,
    **relevance.ENTRIES,
    **datasets.ENTRIES,
    **trunks.ENTRIES,
    **metrics.ENTRIES,
}

# What is public and has no arguments of its own to be tried, and why.
EXEMPT: Mapping[str, str] = {
    "relevance.BaseRelevance": "abstract; tried as FunctionRelevance and its other subclasses",
    "relevance.Relevance": "a protocol",
    "triplets.Relevance": "a protocol",
    "triplets.RANDOM_BITS": "a number",
    "triplets.Weighting": "a type",
    "triplets.NoTripletError": "an exception",
    "triplets.TripletDraw": "a result",
    "datasets.DownloadError": "an exception",
    "datasets.RatedTripletsError": "an exception",
    "metrics.PairedTest": "a result",
    "metrics.ScoreAtTopK": "a result",
    "metrics.SimilarityPrecision": "a result",
    "metrics.TripletRanks": "a result",
}
