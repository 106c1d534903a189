import io

import numpy as np
import pytest
from PIL import Image

from dr_plugin.evaluation.picture_rows import SIDE, Picture, Row, rows_png


def square(colour, size=(10, 10), lines=()):
    return Picture(Image.new("RGB", size, colour), lines)


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_rows_stand_below_one_another_and_pictures_in_order():
    rows = [Row(square("red"), [square("lime"), square("blue")]), Row(None, [square("black")])]
    drawn = pixels(rows_png(rows))
    x = [8 + SIDE // 2, 16 + SIDE + 8 + SIDE // 2, 16 + SIDE + 8 + SIDE + 8 + SIDE // 2]
    y = [8 + SIDE // 2, 8 + SIDE + 8 + SIDE // 2]
    assert drawn[y[0]][x].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    assert drawn[y[1]][x].tolist() == [[255, 255, 255], [0, 0, 0], [255, 255, 255]]


def test_labels_and_lines_are_written_and_long_ones_fit():
    plain = [Row(square("white"), [square("white")])]
    labelled = [Row(square("white"), [square("white")], "a model's name that is far too long for its column")]
    captioned = [Row(square("white"), [square("white", lines=("x" * 300, "0.5"))])]
    widths = [pixels(rows_png(rows)).shape[1] for rows in (plain, labelled, captioned)]
    assert widths[1] > widths[0] == widths[2]
    drawn = pixels(rows_png(captioned))
    below = drawn[8 + SIDE + 4 :, 8 + SIDE + 16 :]
    assert below.min() < 128  # something is written
    assert drawn[8 + SIDE + 4 :, : 8 + SIDE].min() == 255  # and stays below its own picture
    label = pixels(rows_png(labelled))[8 : 8 + SIDE, 24 + SIDE : 24 + SIDE + 120]
    assert label.min() < 128
    assert label[:, -8:].min() == 255


@pytest.mark.parametrize("name", ["", "\n\t", "漢字", "$x_1$", "\ud800"])
def test_any_name_can_be_drawn(name):
    assert rows_png([Row(square("red", lines=(name,)), [square("red", lines=(name, name))], name)])


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3000, 7), (128, 128)])
def test_any_size_is_fitted_in_its_place(size):
    drawn = pixels(rows_png([Row(square("red", size), [square("lime", size)])]))
    assert drawn.shape[:2] == (SIDE + 16, 8 + SIDE + 8 + 8 + SIDE + 8 + 8)
    for left, colour in ((8, [255, 0, 0]), (24 + SIDE, [0, 255, 0])):
        middle = drawn[8 + SIDE // 2 - 1 : 8 + SIDE // 2 + 1, left + SIDE // 2 - 1 : left + SIDE // 2 + 1]
        assert (middle == colour).all(-1).any()


def test_few_pixels_stay_sharp():
    image = Image.fromarray(np.array([[[0, 0, 0], [255, 255, 255]]] * 2, np.uint8))
    drawn = pixels(rows_png([Row(None, [Picture(image)])]))
    assert set(drawn[8 + SIDE // 2, SIDE + 24 : SIDE + 24 + SIDE, 0]) == {0, 255}


def test_no_row_is_refused():
    with pytest.raises(ValueError, match="rows: got none"):
        rows_png([])
