"""SimilarityTriplets: its three forms, what it finds in them, and what it refuses."""

import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from dr_plugin.datasets import PackedImages, RatedTripletsError, SimilarityTriplets

HEADER = "text_query,query,positive,negative\n"
CSV = HEADER + (
    "dogs,images/3.png,images/1.png,images/2.png\n"
    "cars,images/0.png,images/4.png,images/3.png\n"
    "dogs,images/3.png,images/1.png,images/5.png\n"
)


@pytest.fixture
def root(tmp_path):
    """Nine different images 0.png ... 8.png of 12 x 8 pixels, and triplets.csv."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(9):
        pixels = rng.integers(0, 256, (8, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/{number}.png")
    (tmp_path / "triplets.csv").write_text(CSV)
    return tmp_path


def names(data):
    return [path.rpartition("/")[2] for path in data.paths]


def test_images_labels_and_triplets(root):
    data = SimilarityTriplets(root)
    assert names(data) == ["3.png", "1.png", "2.png", "0.png", "4.png", "5.png"]
    assert data.class_ids == data.class_names == ["cars", "dogs"]
    assert data.labels == [1, 1, 1, 0, 0, 1]
    assert data.triplets.tolist() == [[0, 1, 2], [3, 4, 0], [0, 1, 5]]
    assert data.triplets.dtype == np.int64
    assert data.text_queries == ["dogs", "cars", "dogs"]
    assert {text: pool.tolist() for text, pool in data.pools.items()} == {
        "dogs": [0, 1, 2, 5],
        "cars": [0, 3, 4],
    }
    assert data.images_in_several_queries.tolist() == [0]
    image, label = data[3]
    assert (image.mode, image.size, label) == ("RGB", (12, 8), 0)
    assert np.array_equal(image, Image.open(root / "images/0.png"))
    assert not data.is_rated
    assert pickle.loads(pickle.dumps(data)).triplets.tolist() == data.triplets.tolist()


def test_transforms(root):
    data = SimilarityTriplets(root, transform=lambda image: image.size, target_transform=str)
    assert data[0] == ((12, 8), "1")


@pytest.mark.parametrize("how", ["csv numbers", "rows of numbers", "array", "rows of paths", "csv elsewhere"])
def test_a_users_own_triplets(root, tmp_path_factory, how):
    paths = [root / f"images/{number}.png" for number in range(9)]
    other = tmp_path_factory.mktemp("other") / "own.csv"
    if how == "csv numbers":
        other.write_text("query,positive,negative\n6,7,8\n8,7,6\n")
        data = SimilarityTriplets(root, triplets=other, images=paths)
    elif how == "csv elsewhere":
        for number in (6, 7, 8):
            shutil.copy(paths[number], other.parent)
        other.write_text("query,positive,negative\n6.png,7.png,8.png\n8.png,7.png,6.png\n")
        data = SimilarityTriplets(root, triplets=other)
    else:
        rows = [[6, 7, 8], [8, 7, 6]]
        if how == "rows of paths":
            rows = [[f"{number}.png" for number in row] for row in rows]
            data = SimilarityTriplets(root, triplets=rows, images=root / "images")
        else:
            data = SimilarityTriplets(root, triplets=np.array(rows) if how == "array" else rows, images=paths)
    assert names(data) == ["6.png", "7.png", "8.png"]
    assert data.triplets.tolist() == [[0, 1, 2], [2, 1, 0]]
    assert len(data.class_ids) == 2  # each query its own


def write_list(root):
    (root / "triplets.csv").unlink()
    urls = [f"http://x/{number}.png" for number in range(3)]
    (root / "query_and_triplets.txt").write_text(
        "\n".join(["cats", *urls, "dogs", *urls[:2], "http://x/gone.png"])
    )
    return urls


def test_published_list_is_rated(root):
    write_list(root)
    with pytest.raises(ValueError, match=r"got 1 of 4 images without a file: http://x/gone.png \(.*txt:5\)"):
        SimilarityTriplets(root)
    data = SimilarityTriplets(root, missing="skip")
    assert names(data) == ["0.png", "1.png", "2.png"]
    assert data.rated.tolist() == [0]
    with pytest.raises(
        RatedTripletsError, match=r"index 0 \(cats: 0.png, 1.png, 2.png\).*solely used for eval"
    ):
        data.refuse_rated()


def test_published_list_with_a_mapping(root):
    urls = write_list(root)
    images = {url: f"images/{8 - at}.png" for at, url in enumerate(urls)} | {
        "http://x/gone.png": "images/5.png"
    }
    data = SimilarityTriplets(root, triplets="query_and_triplets.txt", images=images)
    assert names(data) == ["8.png", "7.png", "6.png", "5.png"]


def test_missing_images_raise_or_are_skipped_and_counted(root):
    (root / "images/4.png").unlink()
    (root / "images/2.png").unlink()
    with pytest.raises(
        ValueError, match=r"got 2 of 6 images without a file: images/2.png \(.*:2\), images/4.png"
    ):
        SimilarityTriplets(root)
    data = SimilarityTriplets(root, missing="skip")
    assert data.triplets.tolist() == [[0, 1, 2]]
    assert data.class_ids == ["dogs"]
    assert (data.counts["missing_images"], data.counts["triplets_without_images"]) == (2, 2)
    shutil.rmtree(root / "images")
    with pytest.raises(ValueError, match="got 6 of 6 images without a file"):
        SimilarityTriplets(root, missing="skip")


@pytest.fixture
def repeated(root):
    """Triplets 1 and 4 repeat others, 2 and 3 are degenerate; 7.png is a copy of 0.png, 8.png of 1.png."""
    shutil.copy(root / "images/0.png", root / "images/7.png")
    shutil.copy(root / "images/1.png", root / "images/8.png")
    rows = [(0, 1, 2), (0, 1, 2), (3, 3, 4), (0, 5, 7), (7, 8, 2), (1, 0, 2)]
    lines = ["a," + ",".join(f"images/{number}.png" for number in row) for row in rows]
    (root / "triplets.csv").write_text(HEADER + "\n".join(lines))
    return root


def test_duplicates_and_degenerate_by_bytes(repeated):
    data = SimilarityTriplets(repeated)
    assert data.duplicates.tolist() == [1, 4]
    assert data.degenerate.tolist() == [2, 3]
    assert (data.counts["duplicates"], data.counts["degenerate"], data.counts["images"]) == (2, 2, 8)


def test_leave_out(repeated):
    data = SimilarityTriplets(repeated, leave_out_degenerate=True, leave_out_duplicates=True)
    assert data.triplets.tolist() == [[0, 1, 2], [1, 0, 2]]
    assert names(data) == ["0.png", "1.png", "2.png"]
    counts = data.counts
    assert (counts["left_out_degenerate"], counts["left_out_duplicates"], counts["duplicates"]) == (2, 2, 0)


def test_without_leaves_the_original_alone(root):
    data = SimilarityTriplets(root)
    assert data.rated.size == 0
    rest = data.without([0, 2])
    assert (names(rest), rest.labels, rest.triplets.tolist()) == (
        ["0.png", "4.png", "3.png"],
        [0] * 3,
        [[0, 1, 2]],
    )
    assert (len(data), len(data.triplets), "rated" in vars(rest)) == (6, 3, False)
    assert rest.class_ids == ["cars", "dogs"]
    for wrong in (3, -1):
        with pytest.raises(ValueError, match=f"indices: got {wrong}, expected triplets, 0 to 2"):
            data.without([wrong])
    with pytest.raises(ValueError, match="got no triplet that is not left out"):
        data.without(range(3))


def test_split_by_text_query_and_shared_image(root):
    rows = [("a", 0, 1, 2), ("b", 2, 3, 4), ("c", 5, 6, 7), ("c", 6, 5, 7)]
    lines = [f"{text}," + ",".join(f"images/{n}.png" for n in numbers) for text, *numbers in rows]
    (root / "triplets.csv").write_text(HEADER + "\n".join(lines))
    train, val = (SimilarityTriplets(root, split, val_fraction=0.3) for split in ("train", "val"))
    assert (train.text_queries, val.text_queries) == (["a", "b"], ["c", "c"])  # a and b share 2.png
    assert train.class_ids == val.class_ids == ["a", "b", "c"]
    assert val.labels == [2, 2, 2]
    assert names(val) == ["5.png", "6.png", "7.png"]
    assert SimilarityTriplets(root).groups.tolist() == [0, 0, 1, 1]


def test_check_images_names_unreadable_ones(root):
    (root / "images/1.png").write_bytes(b"no image")
    damaged = (root / "images/4.png").read_bytes()
    (root / "images/4.png").write_bytes(damaged[: len(damaged) // 2])
    data = SimilarityTriplets(root)
    with pytest.raises(OSError, match=r"cannot read image .*1.png"):
        data[1]
    seen = []
    with pytest.raises(ValueError, match=r"got 2 of 6 images that cannot be read: .*1.png: .*; .*4.png: "):
        data.check_images(lambda *progress: seen.append(progress))
    assert seen[-1] == ("checking images", 6, 6)
    with pytest.raises(ValueError, match="got 2 of 6 images that cannot be read"):
        SimilarityTriplets(root, check_images=True)


def test_check_images_names_ten_and_counts_all(root):
    for number in range(12):
        (root / f"images/bad{number:02}.png").write_bytes(bytes([number]))
    rows = [[f"bad{n:02}.png" for n in range(start, start + 3)] for start in range(0, 12, 3)]
    with pytest.raises(ValueError, match=r"got 12 of 12 .*bad09.png.*; and 2 more") as caught:
        SimilarityTriplets(root, triplets=rows, images=root / "images", check_images=True)
    assert "bad10" not in str(caught.value)


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1"])
def test_other_modes_become_rgb(root, mode):
    image = Image.open(root / "images/3.png").convert(mode)
    image.save(root / "images/3.tif")
    data = SimilarityTriplets(
        root, triplets=[["images/3.tif", "images/1.png", "images/2.png"]], check_images=True
    )
    assert data[0][0].mode == "RGB"


def test_pack_squashes_the_whole_image(root, tmp_path):
    stripes = np.zeros((8, 12, 3), dtype=np.uint8)
    stripes[:, -2:] = 255  # the right edge is what a centre crop loses
    Image.fromarray(stripes).save(root / "images/3.png")
    data = SimilarityTriplets(root, transform=str)
    packed = data.pack(tmp_path / "pack", size=6)
    assert isinstance(packed, PackedImages)
    assert (len(packed), packed.image_size, packed.labels.tolist()) == (6, (6, 6), data.labels)
    lower = packed[0][0][:, 3:].float()  # (3, 3, 6)
    assert lower[:, :, :4].max() < 1
    assert lower[:, :, 5].min() > 200
    assert data.transform is str
    with pytest.raises(ValueError, match="size: got 0, expected a whole number, at least 1"):
        data.pack(tmp_path / "pack", size=0)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"split": "test"}, "got split='test', expected 'all' or 'train' or 'val'"),
        ({"missing": "ignore"}, 'missing: got \'ignore\', expected "raise" or "skip"'),
        ({"val_fraction": 1.0}, "val_fraction: got 1.0"),
        ({"split": "val"}, "split: got triplets that all share"),
        ({"triplets": "none.csv"}, "triplets: got 'none.csv', expected a file"),
        ({"triplets": [[0, 1, 2]]}, r"triplets\[0\]: got image number 0, expected a path"),
    ],
)
def test_bad_arguments(root, arguments, match):
    with pytest.raises(ValueError, match=match):
        SimilarityTriplets(root, **arguments)


def test_no_folder(tmp_path):
    with pytest.raises(ValueError, match=r"got root='.*none', expected an existing folder"):
        SimilarityTriplets(tmp_path / "none")


@pytest.mark.real_data
def test_the_papers_triplets(similarity_triplets_root):
    data = SimilarityTriplets(similarity_triplets_root)
    counts = data.counts
    assert (counts["triplets"], counts["images"], counts["text_queries"]) == (1688, 4529, 402)
    assert (counts["duplicates"], counts["degenerate"], counts["images_in_several_queries"]) == (0, 3, 11)
    assert len(data.without(data.degenerate).triplets) == 1685
