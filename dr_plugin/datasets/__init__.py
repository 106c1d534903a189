"""Data sets: labelled RGB images, their packed form, and streams of them that need not fit in memory."""

from .archive import DownloadError
from .augment import BatchAugment
from .class_folders import ClassFolders
from .digits import Digits
from .packed import PackedImages
from .rated import RatedTripletsError, rated_triplets, refuse_rated
from .shards import write_shards
from .similarity_triplets import SimilarityTriplets
from .stream import TripletStream
from .tiny_imagenet import TinyImageNet

__all__ = [
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
]
