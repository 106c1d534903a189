"""Hand-crafted image features, one file each, as scikit-learn transformers on uint8 images (N, 3, H, W)."""

from dr_plugin.relevance.features.fisher_vector import FisherVector
from dr_plugin.relevance.features.hog import HOG
from dr_plugin.relevance.features.l1_hash_kpca import L1HashKPCA
from dr_plugin.relevance.features.lab_histogram import LABHistogram
from dr_plugin.relevance.features.sift_histogram import SIFTHistogram
from dr_plugin.relevance.features.texton import SPMKTexton
from dr_plugin.relevance.features.wavelet import Wavelet

__all__ = ["HOG", "FisherVector", "L1HashKPCA", "LABHistogram", "SIFTHistogram", "SPMKTexton", "Wavelet"]
