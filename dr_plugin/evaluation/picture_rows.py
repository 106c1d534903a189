"""Rows of captioned pictures as one PNG: a query, then what was found for it."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont

from dr_plugin.experiments.report_figures import GREY, drawable

SIDE = 128  # of a picture
# Pixels between pictures, a line of text, and the column of the rows' labels.
_GAP, _LINE, _LABEL = 8, 16, 120
_INK, _RULE = "#111827", "#d1d5db"


@dataclass(frozen=True, eq=False)
class Picture:
    """An image with what stands below it, one string a line."""

    image: Image.Image
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Row:
    """A query and what was found for it; a row without a query belongs to the one above."""

    query: Picture | None
    found: Sequence[Picture]
    label: str = ""


def rows_png(rows: Sequence[Row]) -> bytes:
    """The rows below one another: the query on the left, then the row's label if any row has one, then what was found.

    Raises:
        ValueError: if there is no row.
    """
    if not rows:
        raise ValueError("rows: got none, expected at least one")
    label = _LABEL if any(row.label for row in rows) else 0
    columns = max(len(row.found) for row in rows)
    pictures = [picture for row in rows for picture in (*row.found, row.query) if picture is not None]
    height = SIDE + _LINE * max((len(picture.lines) for picture in pictures), default=0) + _GAP
    left = 2 * _GAP + SIDE + _GAP + label
    canvas = Image.new("RGB", (left + columns * (SIDE + _GAP) + _GAP, len(rows) * height + _GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for number, row in enumerate(rows):
        top = number * height + _GAP
        if row.query is not None:
            if number:
                draw.line((0, top - _GAP // 2, canvas.width, top - _GAP // 2), fill=_RULE)
            _put(canvas, draw, row.query, _GAP, top, frame=True)
        if row.label:
            draw.text((left - label, top + SIDE // 2), _short(row.label, label - _GAP), _INK, _font(), "lm")
        for column, picture in enumerate(row.found):
            _put(canvas, draw, picture, left + column * (SIDE + _GAP), top)
    buffer = io.BytesIO()
    canvas.save(buffer, format="PNG")
    return buffer.getvalue()


def _put(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, picture: Picture, x: int, y: int, *, frame: bool = False
) -> None:
    """Draw the picture in the middle of SIDE x SIDE pixels at (x, y), and its lines below."""
    image = picture.image
    scale = SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Few pixels are shown as they are.
    how = Image.Resampling.LANCZOS if scale < 4 else Image.Resampling.NEAREST
    canvas.paste(image.resize(size, how), (x + (SIDE - size[0]) // 2, y + (SIDE - size[1]) // 2))
    if frame:
        draw.rectangle((x - 3, y - 3, x + SIDE + 2, y + SIDE + 2), outline=GREY, width=2)
    for number, line in enumerate(picture.lines):
        where = (x + SIDE // 2, y + SIDE + _LINE * number + _LINE // 2 + 2)
        draw.text(where, _short(line, SIDE), _INK if number == 0 else GREY, _font(), "mm")


def _short(text: str, width: int) -> str:
    """The text, without as much of its middle as does not fit into the width."""
    text = drawable(text)
    kept = len(text)
    shown = text
    while _font().getlength(shown) > width and kept > 2:
        kept -= 1
        shown = f"{text[: kept // 2]}…{text[len(text) - (kept - kept // 2) :]}"
    return shown


@cache
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(findfont(FontProperties(family="DejaVu Sans")), 12)
