"""Deep Ranking (Wang et al., CVPR 2014) as a plugin for pytorch-metric-learning.

Each component lives in a family of its own and is imported from there, for example
``from dr_plugin.miners import UniformTripletMiner``; importing this package alone loads nothing heavy.
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # else imported when it is called
    from dr_plugin.evaluation.trained import TrainedModel

__version__ = "0.1.0"


def load(folder: "str | os.PathLike[str]", *, device: str = "auto") -> "TrainedModel":
    """The model of a finished run, ready to use: uint8 images of any size in, embeddings out.

    It is a `torch.nn.Module` in evaluation mode, and does as a trunk for PML's `InferenceModel`; see
    `dr_plugin.evaluation.trained.TrainedModel`.

    - The checkpoint is read with ``weights_only=True``: no code in it runs. The trunk is built as the folder's
      recipe.yaml says; where that names a class by a dotted path, its module is imported.

    Args:
        folder: Of a run that is finished.
        device: "auto" (a GPU where there is one) or a torch device.
    Raises:
        ValueError: if the folder holds no run, a sweep, comparison or table, or a run that is not finished; or its
            checkpoint is damaged or of another network.
    Example:
        >>> model = dr_plugin.load("runs/quickstart")  # doctest: +SKIP
        >>> model(images).shape  # doctest: +SKIP
        torch.Size([8, 32])
    """
    from dr_plugin.evaluation import trained

    return trained.load(folder, device=device)
