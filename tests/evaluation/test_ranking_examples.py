import io

import numpy as np
import pytest
import torch
from PIL import Image

from dr_plugin.evaluation.picture_rows import SIDE
from dr_plugin.evaluation.ranking_examples import ranking_examples

from .search_cases import write_square

COLOURS = np.array([[250, 0, 0], [0, 250, 0], [0, 0, 250], [250, 250, 0], [0, 250, 250]], np.uint8)


class Squares:
    """Five images of one colour each."""

    def __len__(self):
        return len(COLOURS)

    def batch(self, indices):
        images = torch.from_numpy(COLOURS[np.asarray(indices)])[:, :, None, None].expand(-1, 3, 4, 4)
        return images, torch.zeros(len(images), dtype=torch.long)


def shown(png, rows, top):
    """Index of the image at each place: (rows, 1 + top), the query first; -1 where the picture is white."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    height = (len(pixels) - 8) // rows
    left = 16 + SIDE + 8 + 120
    places = [8 + SIDE // 2] + [left + column * (SIDE + 8) + SIDE // 2 for column in range(top)]
    # (rows, 1 + top, 3).
    seen = pixels[[number * height + 8 + SIDE // 2 for number in range(rows)]][:, places]
    match = (np.abs(seen[:, :, None] - COLOURS) < 8).all(-1)
    return np.where(match.any(-1), match.argmax(-1), -1).tolist()


DISTANCES = np.array([[0.0, 3, 1, 2, np.inf], [4, 1, 2, 0, 1]])
OTHERS = np.array([[0, 4, 3, 2, 1], [3, 2, 1, 0, 4]])


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
@pytest.mark.parametrize("files", [False, True])
def test_rows_show_the_order_of_each_model(tmp_path, kind, files):
    images = Squares()
    if files:
        images = [write_square(tmp_path / f"{n}.png", colour) for n, colour in enumerate(COLOURS.tolist())]
    png = ranking_examples(
        [("distances", kind(DISTANCES)), ("neighbours", kind(OTHERS))], images, [0, 3], top=3
    )
    assert shown(png, 4, 3) == [[0, 2, 3, 1], [-1, 4, 3, 2], [3, 1, 4, 2], [-1, 2, 1, 0]]


def test_query_is_left_out_by_its_index_and_not_by_its_distance():
    distances = np.array([[7.0, 0, 0, 1, 2]])
    assert shown(ranking_examples([("model", distances)], Squares(), [0], top=4), 1, 4) == [[0, 1, 2, 3, 4]]


def test_model_names_are_drawn():
    one, other = (
        ranking_examples([(name, OTHERS)], Squares(), [0, 3], top=2) for name in ("ConvNet", "OASIS")
    )
    assert one != other
    assert one == ranking_examples([("ConvNet", OTHERS)], Squares(), [0, 3], top=2)


@pytest.mark.parametrize(
    ("models", "queries", "top", "message"),
    [
        ([], [0, 3], 2, "models: got none"),
        ([("A", OTHERS)], [], 2, "queries: got"),
        ([("A", OTHERS)], [0.5, 1], 2, "queries: got"),
        ([("A", OTHERS)], [0, 5], 2, "queries: got index 5, expected 0 to 4"),
        ([("A", OTHERS)], [0, -1], 2, "queries: got index -1"),
        ([("A", OTHERS)], [0, 3], 0, "top: got 0 for 5 images, expected 1 to 4"),
        ([("A", OTHERS)], [0, 3], 5, "top: got 5 for 5 images, expected 1 to 4"),
        ([("A", OTHERS[:1])], [0, 3], 2, r"A: got int64 of shape \(1, 5\) for 2 queries"),
        ([("A", OTHERS.astype(bool))], [0, 3], 2, "A: got bool"),
        ([("A", OTHERS[:, :2])], [0, 3], 2, "A: got 1 images to show for a query beside itself, .*top=2"),
        ([("A", OTHERS + 1)], [0, 3], 2, "A: got index 5, expected 0 to 4"),
        ([("A", DISTANCES[:, :4])], [0, 3], 2, "A: got distances to 4 images, expected to all 5"),
        ([("A", DISTANCES * np.nan)], [0, 3], 2, "A: got NaN among the distances"),
        ([("A", DISTANCES)], [0, 3], 4, "A: got 3 images to show"),
    ],
)
def test_mistake_is_one_error(models, queries, top, message):
    with pytest.raises(ValueError, match=message):
        ranking_examples(models, Squares(), queries, top)
