"""The files that components which read files are given."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from dr_plugin.datasets import PackedImages, write_shards
from dr_plugin.metrics import build_index, save_index
from dr_plugin.relevance import StoredRelevance, TableRelevance
from dr_plugin.trunks import SmallConvNet

from .tables import IMAGES, LABELS, POINTS, SIMILAR


class Items(torch.utils.data.Dataset):
    """Six images of two classes, to be packed."""

    labels = LABELS.tolist()

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(IMAGES[index]), self.labels[index]


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    make_tiny_imagenet: Callable[..., Path],
    make_rated_triplets: Callable[..., Path],
) -> Iterator[Path]:
    """Files of every kind; it is the working directory too, so that what an odd path makes is made in it."""
    folder = tmp_path_factory.mktemp("arguments")
    make_tiny_imagenet(folder / "tiny", classes=2, train=3, val=1, size=8, greyscale=0)
    make_rated_triplets(folder / "rated", queries=3, triplets=1, size=24)
    write_shards(IMAGES, LABELS.numpy(), folder / "shards", relevance=TableRelevance(SIMILAR))
    PackedImages.build(Items(), folder / "pack")
    StoredRelevance.build(TableRelevance(SIMILAR), folder / "store", key="a")
    save_index(build_index(POINTS), folder / "index.faiss")
    torch.save(SmallConvNet((2,)).state_dict(), folder / "weights.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder
