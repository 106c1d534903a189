"""Data sets: labelled RGB images, and their packed form."""

from .archive import DownloadError
from .augment import BatchAugment
from .class_folders import ClassFolders
from .digits import Digits
from .packed import PackedImages
from .tiny_imagenet import TinyImageNet

__all__ = ["BatchAugment", "ClassFolders", "Digits", "DownloadError", "PackedImages", "TinyImageNet"]
