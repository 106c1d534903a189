"""Hand-crafted image features, one file each, as scikit-learn transformers on uint8 images (N, 3, H, W)."""

from dr_plugin.relevance.features.hog import HOG
from dr_plugin.relevance.features.lab_histogram import LABHistogram

__all__ = ["HOG", "LABHistogram"]
