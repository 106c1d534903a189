"""The pages and the folder of a report, read back with a plain HTML parser."""

import base64
import io
import re
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dr_plugin.experiments import report
from dr_plugin.experiments.report import Neighbor, RankedExample, ReportData, write_report

VOID = {"meta", "link", "img", "br", "hr"}
DASH = "\N{EN DASH}"
SECTIONS = ["headline", "precision", "training", "examples", "filters", "improve", "recipe", "environment"]
NAMES = ["goldfish, Carassius auratus", "bee", "ox", "go-kart"]
METRICS = {
    "name": "tiny",
    "k": 30,
    "val": {"precision_at_30": 0.4103, "recall_at_1": 0.5217},
    "train": {"precision_at_30": 0.5561},
    "selection": {"precision_at_30": 0.4307, "stage": "ranking", "epoch": 9},
    "baselines": {
        "untrained": {"precision_at_30": 0.1109},
        "pixels": {"precision_at_30": 0.1042},
        "hog": {"precision_at_30": 0.0741},
    },
    "wall_time_s": 812.3,
    "stages": [
        {
            "name": "softmax",
            "epochs": 10,
            "steps": 1530,
            "images_seen": 98000,
            "wall_time_s": 400.0,
            "images_per_s": 245.0,
        }
    ],
}


def picture(seed: int, size: tuple[int, int] = (8, 8)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def example(
    label: int = 1, nearest: tuple[int, ...] = (1, 0, 1), farthest: tuple[int, ...] = (2, 1)
) -> RankedExample:
    near = [Neighbor(picture(10 + i), other, 0.125 * (i + 1)) for i, other in enumerate(nearest)]
    far = [Neighbor(picture(20 + i), other, 1.75 - 0.25 * i) for i, other in enumerate(farthest)]
    return RankedExample(picture(label), label, near, far)


def make_data(**changes: Any) -> ReportData:
    history = [
        {"event": event, "stage": stage, "epoch": e, "step": e, "images_seen": 100 * e, key: value * e}
        for stage in ("softmax", "ranking")
        for e in (1, 2)
        for event, key, value in (("train", "loss", 0.7), ("evaluate", "precision_at_30", 0.2))
    ]
    data = ReportData(
        name="tiny",
        recipe_text="seed: 0\ndata:\n  classes: 4\n",
        environment={"python": "3.11.7", "packages": {"torch": "2.15.0"}, "cores": 2},
        metrics=METRICS,
        history=history,
        class_names=NAMES,
        examples=[example()],
        filters={"convnet": np.random.default_rng(0).normal(size=(4, 3, 3, 3))},
        class_precision=np.array([0.81, 0.23, 0.47, 0.62]),
        confusion=np.array(
            [[0.81, 0.1, 0.09, 0], [0.07, 0.23, 0.7, 0], [0.4, 0.13, 0.47, 0], [0.2, 0.18, 0, 0.62]]
        ),
    )
    return replace(data, **changes)


def light_data(**changes: Any) -> ReportData:
    """The same without what takes long to draw, for tests that look at other parts."""
    return make_data(**({"history": [], "examples": []} | changes))


def bare_data() -> ReportData:
    """What a run that was cut short may hand over."""
    empty = np.empty(0)
    return ReportData("short", "", {}, {"k": 5}, [], ["a", "b"], [], {}, empty, np.empty((0, 0)))


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    children: list["Element | str"] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def all(self, tag: str = "", css: str = "") -> list["Element"]:
        """This element's descendants with that tag and class, in document order."""
        found = []
        for child in self.children:
            if isinstance(child, Element):
                if tag in ("", child.tag) and (not css or css in child.attributes.get("class", "").split()):
                    found.append(child)
                found += child.all(tag, css)
        return found

    def table(self) -> list[list[str]]:
        return [[cell.text for cell in row.children if isinstance(cell, Element)] for row in self.all("tr")]


class Tree(HTMLParser):
    """Builds the tree and fails at the first end tag that does not close the innermost open element."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open = [Element("document", {})]
        self.feed(html)
        self.close()
        assert len(self.open) == 1, f"left open: {self.open[1:]}"
        self.root = self.open[0]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {key: value or "" for key, value in attrs})
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def read(page: Path) -> Element:
    return Tree(page.read_text(encoding="utf-8")).root


def section(root: Element, name: str) -> Element:
    return next(element for element in root.all() if element.attributes.get("id") == name)


def decode(image: Element) -> Image.Image:
    start = "data:image/png;base64,"
    assert image.attributes["src"].startswith(start)
    picture = Image.open(io.BytesIO(base64.b64decode(image.attributes["src"][len(start) :], validate=True)))
    picture.load()
    return picture


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("full") / "report", make_data())


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("bare") / "report", bare_data())


@pytest.mark.parametrize("kind", ["full", "bare"])
def test_html_stands_alone(kind: str, request: pytest.FixtureRequest) -> None:
    page = request.getfixturevalue(kind)
    root = read(page)
    identifiers = [element.attributes["id"] for element in root.all() if "id" in element.attributes]
    assert identifiers == SECTIONS
    for element in root.all():
        assert element.tag not in {"script", "iframe", "object", "embed", "base", "form"}
        assert not [name for name in element.attributes if name.startswith("on")]
        assert set(element.attributes) & {"srcset", "background", "data", "poster"} == set()
        target = element.attributes.get("href", "data:,")
        assert target == "data:," or target.removeprefix("#") in identifiers
        if element.tag == "img":
            assert min(decode(element).size) >= 1
            assert element.attributes["alt"]
    styles = "".join(style.text for style in root.all("style"))
    assert "url(" not in styles
    assert "@import" not in styles


def test_headline_shows_the_figures(full: Path) -> None:
    cards = section(read(full), "headline").all("div")
    shown = {card.all("dt")[0].text: card.all("dd", "figure")[0].text for card in cards}
    assert shown == {
        "Val precision at 30": "41.03%",
        "Train precision at 30": "55.61%",
        "Selection precision at 30": "43.07%",
        "Best baseline": "11.09%",
        "Images per second": "245",
        "Wall time": "13 min 32 s",
    }
    remarks = [remark.text for remark in section(read(full), "headline").all("dd", "remark")]
    assert "stage ranking, epoch 9" in remarks
    assert "Untrained trunk" in remarks


@pytest.mark.parametrize(("k", "val", "train", "hog"), [(30, 0.5, 0.75, 0.125), (7, 0.70154, 0.9, 0.03)])
def test_precision_table_holds_the_given_figures(
    tmp_path: Path, k: int, val: float, train: float, hog: float
) -> None:
    key = f"precision_at_{k}"
    metrics = {
        "k": k,
        "val": {key: val, "recall_at_1": 0.625},
        "train": {key: train},
        "baselines": {"hog": {key: hog}},
    }
    page = write_report(tmp_path / "report", light_data(metrics=metrics))
    table = section(read(page), "precision").table()
    assert table == [
        ["System", "Queries", f"Precision at {k}", "Recall at 1"],
        ["This model", "val", f"{100 * val:.2f}%", "62.50%"],
        ["This model", "train", f"{100 * train:.2f}%", DASH],
        ["Untrained trunk", "val", "not measured", DASH],
        ["Raw pixels", "val", "not measured", DASH],
        ["HOG descriptor", "val", f"{100 * hog:.2f}%", DASH],
    ]
    markdown = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert f"| System | Queries | Precision at {k} | Recall at 1 |\n|---|---|---:|---:|\n" in markdown
    assert f"| This model | val | {100 * val:.2f}% | 62.50% |\n" in markdown
    assert f"| HOG descriptor | val | {100 * hog:.2f}% | {DASH} |\n" in markdown


def test_training_shows_a_curve_for_each_stage_and_its_speed(full: Path) -> None:
    training = section(read(full), "training")
    assert [caption.text for caption in training.all("figcaption")] == ["Stage softmax", "Stage ranking"]
    assert training.table()[1:] == [["softmax", "10", "1,530", "98,000", "245", "6 min 40 s"]]
    assert "13 min 32 s" in training.text


def test_curves_of_different_losses_differ(full: Path, tmp_path: Path) -> None:
    history = [{**record, "loss": 0.1} if "loss" in record else record for record in make_data().history]
    other = write_report(tmp_path / "report", light_data(history=history))
    assert contents(other.parent)["curves-1.png"] != contents(full.parent)["curves-1.png"]
    assert contents(other.parent)["classes.png"] == contents(full.parent)["classes.png"]


def test_examples_mark_right_and_wrong_by_class_and_symbol(full: Path) -> None:
    examples = section(read(full), "examples")
    groups = examples.all("div", "tiles")
    marks = [
        [(tile.attributes["class"], tile.all("span", "mark")[0].text) for tile in group.all("figure")]
        for group in groups
    ]
    right, wrong = ("right", "✓"), ("wrong", "✗")
    # The query is of class 1: the nearest are 1, 0, 1 and the farthest 2, 1.
    assert marks == [[right, wrong, right], [right, wrong]]
    assert [title.text for title in examples.all("h3")] == [
        "Nearest · 2 of 3 of the same class",
        "Farthest · 1 of 2 of another class",
    ]
    captions = [[caption.text for caption in group.all("figcaption")] for group in groups]
    assert captions == [["bee0.125", "goldfish0.250", "bee0.375"], ["ox1.750", "bee1.500"]]


def test_examples_embed_the_very_pixels(full: Path) -> None:
    shown = example()
    images = [item.image for item in (shown, *shown.nearest, *shown.farthest)]
    embedded = [np.asarray(decode(image)) for image in section(read(full), "examples").all("img")]
    assert len(embedded) == len(images)
    assert all(np.array_equal(*pair) for pair in zip(embedded, images, strict=True))


def test_short_names_carry_the_full_name_as_title(full: Path) -> None:
    titles = {
        name.attributes["title"]
        for name in section(read(full), "examples").all("b")
        if name.text == "goldfish"
    }
    assert titles == {NAMES[0]}


def test_improve_lists_the_weakest_and_the_confused(full: Path) -> None:
    improve = section(read(full), "improve")
    weakest, confused = (table.table() for table in improve.all("table"))
    assert weakest[1:] == [["bee", "23.0%", "ox 70.0%"], ["ox", "47.0%", "goldfish 40.0%"]]
    assert confused[1:4] == [
        ["bee", "ox", "70.0%", "13.0%"],
        ["ox", "goldfish", "40.0%", "9.0%"],
        ["go-kart", "goldfish", "20.0%", "0.0%"],
    ]
    assert len(confused) == 1 + 8  # every share above zero


def test_improve_with_many_classes_shows_ten_of_each(tmp_path: Path) -> None:
    count = 200
    rng = np.random.default_rng(0)
    page = write_report(
        tmp_path / "report",
        light_data(
            class_names=[f"class {i}" for i in range(count)],
            class_precision=rng.uniform(size=count),
            confusion=rng.dirichlet(np.ones(count), count),
        ),
    )
    assert [len(table.all("tr")) for table in section(read(page), "improve").all("table")] == [11, 11]


def test_improve_with_no_mistake_says_none(tmp_path: Path) -> None:
    page = write_report(tmp_path / "report", light_data(class_precision=np.ones(4), confusion=np.eye(4)))
    improve = section(read(page), "improve")
    assert improve.table()[1] == ["goldfish", "100.0%", "none"]
    assert len(improve.all("table")) == 1
    assert "Confusions: none." in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")


def test_filters_of_every_path_are_drawn(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    filters = {
        "convnet": rng.normal(size=(64, 3, 11, 11)),
        "low resolution 1": rng.normal(size=(130, 3, 8, 8)),
    }
    page = write_report(tmp_path / "report", light_data(filters=filters))
    captions = [caption.text for caption in section(read(page), "filters").all("figcaption")]
    assert captions == [
        "convnet: 64 filters of 11 x 11",
        "low resolution 1: the first 128 of 130 filters of 8 x 8",
    ]


def test_recipe_and_environment_are_shown_whole(full: Path) -> None:
    root = read(full)
    assert section(root, "recipe").all("pre")[0].text == "seed: 0\ndata:\n  classes: 4"
    assert section(root, "environment").table() == [
        ["python", "3.11.7"],
        ["packages.torch", "2.15.0"],
        ["cores", "2"],
    ]


def test_missing_parts_are_said_to_be_missing(bare: Path) -> None:
    root = read(bare)
    for name in SECTIONS:
        if name != "recipe":
            assert "not measured" in section(root, name).text, name
    markdown = (bare.parent / "report.md").read_text(encoding="utf-8")
    for part in (
        "Loss curve",
        "Training speed",
        "Examples",
        "First-layer filters",
        "Weakest classes",
        "Environment",
    ):
        assert f"{part}: not measured." in markdown
    assert set(contents(bare.parent)) == {"report.html", "report.md"}


@pytest.mark.parametrize("missing", [None, {}])
def test_null_parts_are_as_good_as_missing(missing: object, tmp_path: Path) -> None:
    metrics = {key: missing for key in METRICS if key not in ("k", "name")} | {"k": 30, "wall_time_s": None}
    page = write_report(tmp_path / "report", light_data(metrics=metrics))
    figures = [card.text for card in section(read(page), "headline").all("dd", "figure")]
    assert figures == ["not measured"] * 6


HOSTILE = ["<script>alert(1)</script>", 'R&D "x" <b>', "日本 | *a* $x^2$ [l](u)", "\udc80 not unicode"]


def test_hostile_text_is_shown_as_text(tmp_path: Path) -> None:
    recipe = "a: '</pre><script>'\nb: \"```\" # & ünïcode\n"
    data = make_data(
        name=HOSTILE[0],
        class_names=HOSTILE,
        recipe_text=recipe,
        environment={HOSTILE[1]: HOSTILE[0]},
        history=[{**record, "stage": HOSTILE[2]} for record in make_data().history],
        filters={HOSTILE[1]: np.ones((1, 3, 2, 2))},
        examples=[example(2, nearest=(0, 1, 2, 3))],
    )
    page = write_report(tmp_path / "report", data)
    root = read(page)
    assert not root.all("script")
    assert [heading.text for heading in root.all("h1")] == [HOSTILE[0]]
    assert root.all("title")[0].text == f"{HOSTILE[0]}: report"
    assert section(root, "recipe").all("pre")[0].text == recipe.rstrip("\n")
    assert section(root, "environment").table() == [[HOSTILE[1], HOSTILE[0]]]
    shown = [name.text for name in section(root, "examples").all("b")][:4]
    assert shown == [*HOSTILE[:3], "\\udc80 not unicode"]

    lines = (tmp_path / "report" / "report.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# &lt;script&gt;alert(1)&lt;/script&gt;: report"
    fence = lines.index("````yaml")
    assert lines[fence + 1 : fence + 4] == [*recipe.splitlines(), "````"]
    row = next(line for line in lines if line.startswith("| 日本"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 4  # the name's own bar does not split its cell


@pytest.mark.parametrize("kind", ["full", "bare"])
def test_markdown_links_the_files_beside_it(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind).parent
    links = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", (folder / "report.md").read_text(encoding="utf-8"))
    assert sorted(links) == sorted(file.name for file in folder.glob("*.png"))
    for link in links:
        with Image.open(folder / link) as image:
            assert image.format == "PNG"
            assert not {key for key in image.info if key != "dpi"}  # no date, no version


def test_markdown_tables_and_headings_stand_apart(full: Path) -> None:
    lines = full.with_name("report.md").read_text(encoding="utf-8").splitlines()
    for above, line in pairwise(lines):
        if line.startswith(("#", "![")) or (line.startswith("|") and not above.startswith("|")):
            assert above == "", line


def test_same_data_gives_the_same_bytes(full: Path, tmp_path: Path) -> None:
    again = write_report(tmp_path / "elsewhere", make_data())
    assert contents(again.parent) == contents(full.parent)


def test_report_of_large_images_stays_small(tmp_path: Path) -> None:
    images = [picture(seed, (225, 225)) for seed in range(5)]  # noise: nothing compresses worse
    ranked = [Neighbor(images[i % 5], 0, 0.5) for i in range(20)]
    shown = RankedExample(images[0], 0, ranked[:10], ranked[10:])
    page = write_report(tmp_path / "report", light_data(examples=[shown]))
    assert page.stat().st_size < 3e6 / 5  # a fifth of five such examples
    assert max(max(decode(image).size) for image in section(read(page), "examples").all("img")) <= 72


def test_report_replaces_an_earlier_one_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "report"
    write_report(folder, make_data())
    assert write_report(folder, bare_data()) == folder / "report.html"
    assert set(contents(folder)) == {"report.html", "report.md"}
    assert [file.name for file in tmp_path.iterdir()] == ["report"]


@pytest.mark.parametrize("failing", ["sheet_png", "class_precision_png", "replacing"])
def test_failure_leaves_the_earlier_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    folder = tmp_path / "report"
    write_report(folder, bare_data())
    before = contents(folder)

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(report, failing, fail)
    with pytest.raises(OSError, match="no space left"):
        write_report(folder, make_data())
    assert contents(folder) == before
    assert [file.name for file in tmp_path.iterdir()] == ["report"]


@pytest.mark.parametrize("failing", [False, True])
def test_kill_between_the_renames_loses_no_report(
    tmp_path: Path, full: Path, monkeypatch: pytest.MonkeyPatch, failing: bool
) -> None:
    folder = tmp_path / "report"
    write_report(folder, bare_data())
    before = contents(folder)
    folder.rename(tmp_path / ".report.old")
    (tmp_path / ".report.new").mkdir()
    if failing:  # the next attempt fails too: what it leaves is the report before both
        monkeypatch.setattr(report, "replacing", None)
        with pytest.raises(TypeError):
            write_report(folder, make_data())
        assert contents(folder) == before
    else:
        write_report(folder, make_data())
        assert contents(folder) == contents(full.parent)
    assert [file.name for file in tmp_path.iterdir()] == ["report"]


def test_folder_that_holds_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years of work")
    with pytest.raises(ValueError, match="holds other files, expected a new, an empty or a report's folder"):
        write_report(tmp_path, bare_data())
    assert contents(tmp_path) == {"thesis.txt": b"three years of work"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": {"name": "x"}}, r"metrics: got the keys \['name'\], expected 'k'"),
        ({"class_precision": np.ones(3)}, r"class_precision: got shape \(3,\), expected \(4,\)"),
        ({"confusion": np.ones((4, 3))}, r"confusion: got shape \(4, 3\), expected \(4, 4\)"),
        ({"filters": {"low": np.ones((2, 1, 3, 3))}}, r"filters\['low'\]: got shape \(2, 1, 3, 3\)"),
        (
            {"filters": {"low": np.full((2, 3, 3, 3), np.nan)}},
            r"filters\['low'\]: got values that are not finite",
        ),
        ({"examples": [example(label=4)]}, "examples: got label 4, expected one of the 4 class_names"),
        ({"examples": [example(farthest=(-1,))]}, "examples: got label -1"),
        (
            {"examples": [RankedExample(np.zeros((3, 8, 8), dtype=np.uint8), 0, [], [])]},
            r"got an image uint8 \(3, 8, 8\), expected uint8 \(H, W, 3\)",
        ),
        ({"examples": [RankedExample(np.zeros((8, 8, 3)), 0, [], [])]}, "got an image float64"),  # type: ignore[arg-type]
    ],
)
def test_data_that_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_data(**changes)
