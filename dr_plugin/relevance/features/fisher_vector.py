"""Fisher vectors of dense SIFT descriptors, ref. [20] of the paper."""

import math
import warnings
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from dr_plugin.checks import check_whole
from dr_plugin.relevance.features.batches import Features, Images, Progress, describe_batches
from dr_plugin.relevance.features.dense_sift import DenseSIFT
from dr_plugin.relevance.image_rows import ImageRows

_ITERATIONS = 30  # of EM: later ones move the log-likelihood by less than sampling other patches does


class FisherVector(TransformerMixin, BaseEstimator):
    """In which direction an image's SIFT patches would move the means and deviations of a mixture of Gaussians.

    x are the patches of `DenseSIFT` by PCA, g_k(x) the posterior of Gaussian k (weight w, mean m, deviation s):
    G_mean,k = sum_x g_k(x) (x - m_k) / s_k / (K sqrt(w_k)),
    G_deviation,k = sum_x g_k(x) ((x - m_k)^2 / s_k^2 - 1) / (K sqrt(2 w_k)), K the patches.
    Then each number z becomes sign(z) |z|^0.5, and the vector is scaled to length 1.

    - Flat patches are left out; an image of none but those is all 0.
    - The order: means by Gaussian, then deviations by Gaussian. (scikit-image's `fisher_vector`, but
      for its gradients of the weights and the sign of those of the deviations, and many images at once.)
    - EM stops after 30 iterations, converged or not.

    Differs from ref. [20] in: one vector an image, no spatial pyramid; 64 Gaussians, its smallest.

    Args:
        gaussians: K of the mixture.
        dimension: Of the patches after PCA, at most 128.
        cell_sizes: Pixels a side of a descriptor's cells, one scale each; a patch is 4 cells wide.
        step: Pixels between patches.
        root: RootSIFT instead of SIFT.
        images: From how many images, at most, PCA and mixture are learned.
        samples: From how many patches, at most, evenly over these.
        seed: Of both draws and of EM.
        batch_size: Images in one piece of work.
        n_jobs: Processes, as everywhere in scikit-learn; None is 1, -1 all cores.
    Attributes:
        projection_: (128, dimension) float32; after `fit`, as all below.
        offset_: (dimension,): `x = descriptor @ projection_ + offset_`.
        mixture_: scikit-learn's GaussianMixture of x.
    Shape:
        images (N, 3, H, W) uint8 (array, memory map or tensor) or an object with `len` and `batch(indices)` ->
        (N, 2 gaussians dimension) float32, 8192 by default.
    Raises:
        ValueError: if images or a parameter are none of these; from `fit`, if there are fewer textured patches
            than dimensions or twice the Gaussians.
        NotFittedError: from `transform` before `fit`.
    Example:
        >>> images = np.random.default_rng(0).integers(0, 256, (4, 3, 48, 48), np.uint8)
        >>> FisherVector(gaussians=4, dimension=8).fit_transform(images).shape
        (4, 64)

    References:
        Perronnin, Liu, Sanchez and Poirier, Large-Scale Image Retrieval with Compressed Fisher Vectors, CVPR 2010.
        Perronnin, Sanchez and Mensink, Improving the Fisher Kernel for Large-Scale Image Classification, ECCV 2010.
    """

    default_kernel: ClassVar[str] = "cosine"  # by which GoldenFeatures compares Fisher vectors
    distance: ClassVar[str] = "cosine"
    seen: ClassVar[str] = "unlabelled images"  # what fit learns from, as a table says

    def __init__(
        self,
        *,
        gaussians: int = 64,
        dimension: int = 64,
        cell_sizes: tuple[int, ...] = (4, 6, 8),
        step: int = 4,
        root: bool = False,
        images: int = 1000,
        samples: int = 50_000,
        seed: int = 0,
        batch_size: int = 16,
        n_jobs: int | None = None,
    ) -> None:
        self.gaussians = gaussians
        self.dimension = dimension
        self.cell_sizes = cell_sizes
        self.step = step
        self.root = root
        self.images = images
        self.samples = samples
        self.seed = seed
        self.batch_size = batch_size
        self.n_jobs = n_jobs

    def fit(self, images: Any, y: Any = None) -> Self:
        """Learn PCA and mixture from seeded patches of seeded images."""
        patches = self._patches()
        sample = patches.sample(ImageRows(images), self.images, self.samples, self.seed).numpy()
        least = max(self.dimension, 2 * self.gaussians)
        if len(sample) < least:
            raise ValueError(
                f"got {len(sample)} patches that are not flat, expected at least {least}: give more or larger "
                "images, or lower gaussians, dimension or step"
            )
        pca = PCA(self.dimension, random_state=self.seed).fit(sample)
        self.projection_ = np.ascontiguousarray(pca.components_.T, np.float32)
        self.offset_ = (-pca.mean_ @ pca.components_.T).astype(np.float32)
        mixture = GaussianMixture(
            self.gaussians, covariance_type="diag", max_iter=_ITERATIONS, random_state=self.seed
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # stopped on purpose
            self.mixture_ = mixture.fit(sample @ self.projection_ + self.offset_)
        return self

    def transform(self, images: Any, *, progress: Progress | None = None) -> Features:
        """The vectors (N, F); ``progress`` is called as progress(task, images done, images in all)."""
        check_is_fitted(self, msg="got %(name)s before fit(images), expected its mixture learned")
        self._patches()
        return describe_batches(
            self._vectors,
            images,
            task="FisherVector",
            batch_size=self.batch_size,
            n_jobs=self.n_jobs,
            progress=progress,
        )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "mixture_")

    def _vectors(self, images: Images) -> Features:
        """Of one batch: (n, 3, H, W) -> (n, F)."""
        descriptors = DenseSIFT(self.cell_sizes, self.step, self.root)(images)
        x = descriptors @ torch.from_numpy(self.projection_) + torch.from_numpy(self.offset_)  # (n, K, D)
        textured = descriptors.any(dim=2)
        vectors = fisher_gradients(x, textured, self.mixture_)
        rooted = vectors.sign() * vectors.abs().sqrt()
        unit: Features = torch.nn.functional.normalize(rooted, dim=1).numpy()
        return unit

    def _patches(self) -> DenseSIFT:
        check_whole("gaussians", self.gaussians, minimum=1)
        check_whole("dimension", self.dimension, minimum=1, below=129)
        for name in ("images", "samples", "batch_size"):
            check_whole(name, getattr(self, name), minimum=1)
        check_whole("seed", self.seed, minimum=0, below=2**32)
        return DenseSIFT(self.cell_sizes, self.step, self.root)


def fisher_gradients(x: Tensor, counted: Tensor, mixture: GaussianMixture) -> Tensor:
    """G_mean and G_deviation of the class's docstring, of the counted x: (n, K, D), (n, K) bool -> (n, 2 k D)."""
    means, precisions, weights = (
        torch.from_numpy(array.astype(np.float32))
        for array in (mixture.means_, mixture.precisions_, mixture.weights_)
    )
    # log w - log s - (x - m)^2 / 2 s^2, as two products; what all Gaussians share is left out
    constants = weights.log() + 0.5 * (precisions.log() - means.square() * precisions).sum(1)
    squares = x.square()
    logits = x @ (means * precisions).T - 0.5 * (squares @ precisions.T) + constants
    posteriors = torch.softmax(logits, dim=2) * counted[:, :, None]  # (n, K, k)
    turned = posteriors.transpose(1, 2)
    zeroth = posteriors.sum(dim=1)[:, :, None]  # (n, k, 1)
    first, second = turned @ x, turned @ squares  # (n, k, D)
    centred = first - means * zeroth
    spread = (second - 2 * means * first + means.square() * zeroth) * precisions - zeroth
    patches = counted.sum(dim=1).clamp(min=1)[:, None, None]
    scale = patches * weights.sqrt()[:, None]
    gradients = (centred * precisions.sqrt() / scale, spread / (scale * math.sqrt(2)))
    return torch.cat([part.flatten(1) for part in gradients], dim=1)
