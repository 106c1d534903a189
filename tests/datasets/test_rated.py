"""The guard of rated triplets: what it knows again, what it does not take for rated, and its error."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from dr_plugin.datasets import RatedTripletsError, SimilarityTriplets, rated, rated_triplets, refuse_rated
from dr_plugin.datasets.rated import fingerprints_of, write_fingerprints

RATED = [[0, 1, 2], [3, 4, 5], [0, 4, 2]]


def draw(seed, size=(150, 110)):
    """A picture of smooth shades and a few shapes."""
    rng = np.random.default_rng(seed)
    shades = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    pencil = ImageDraw.Draw(shades)
    for _ in range(4):
        left, top = int(rng.integers(0, size[0] - 30)), int(rng.integers(0, size[1] - 30))
        colour = tuple(rng.integers(0, 256, 3).tolist())
        pencil.ellipse((left, top, left + int(rng.integers(10, 40)), top + 25), fill=colour)
    return shades


PICTURES = [draw(seed) for seed in range(20)]


@pytest.fixture
def known(tmp_path, monkeypatch):
    """The guard knows PICTURES 0 to 5 and the triplets RATED of them."""
    paths = []
    for number, picture in enumerate(PICTURES[:6]):
        paths.append(tmp_path / f"{number}.png")
        picture.save(paths[-1])
    write_fingerprints(paths, RATED, tmp_path / "known.npz")
    monkeypatch.setattr(rated, "_FILE", tmp_path / "known.npz")
    rated._rated.cache_clear()
    yield paths
    rated._rated.cache_clear()


def jpeg(image, quality):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


def centre(image):
    left = (image.width - image.height) // 2
    return image.crop((left, 0, left + image.height, image.height))


CHANGES = {
    "as it is": lambda image: image,
    "grey": lambda image: image.convert("L"),
    "palette": lambda image: image.convert("P"),
    "jpeg 50": lambda image: jpeg(image, 50),
    "64 x 64": lambda image: image.resize((64, 64)),
    "twice as large": lambda image: image.resize((300, 220), Image.Resampling.BICUBIC),
    "centre square": centre,
    "centre square of 64, jpeg 75": lambda image: jpeg(centre(image).resize((64, 64)), 75),
    "array": np.asarray,
    "tensor": lambda image: torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_rated_triplets_known_by_content_in_any_role(known, change):
    images = [change(picture) for picture in PICTURES]
    triplets = [[0, 1, 2], [9, 8, 7], [2, 0, 1], [5, 4, 3], [0, 1, 3], [0, 1, 10], [2, 4, 0], [0, 0, 2]]
    assert rated_triplets(images.__getitem__, triplets).tolist() == [0, 2, 3, 6]


def test_rated_triplets_from_paths_arrays_and_tensors(known):
    for triplets in (np.array(RATED, dtype=np.uint8), torch.tensor(RATED), RATED):
        assert rated_triplets(known, triplets).tolist() == [0, 1, 2]


def test_a_rated_triplet_with_one_image_twice_needs_it_twice(known, tmp_path, monkeypatch):
    write_fingerprints(known, [[0, 0, 1]], tmp_path / "twice.npz")
    monkeypatch.setattr(rated, "_FILE", tmp_path / "twice.npz")
    rated._rated.cache_clear()
    assert rated_triplets(known, [[0, 0, 1], [0, 1, 1], [1, 0, 0], [0, 1, 2]]).tolist() == [0, 2]


def test_each_image_is_asked_for_once(known):
    asked = []
    seen = []

    def at(index):
        asked.append(index)
        return PICTURES[index]

    triplets = np.array(RATED)[[0, 1, 2, 0, 1, 2]]
    rated_triplets(at, triplets, workers=1, progress=lambda *progress: seen.append(progress))
    assert asked == [0, 1, 2, 3, 4, 5]
    assert seen == [("looking for rated triplets", 6, 6)]


def test_refuse_rated_quotes_the_rule(known):
    refuse_rated(PICTURES.__getitem__, [[6, 7, 8]])
    refuse_rated(PICTURES.__getitem__, [])
    with pytest.raises(RatedTripletsError) as caught:
        refuse_rated(PICTURES.__getitem__, [[6, 7, 8], *RATED])
    assert str(caught.value).startswith(
        "got 3 rated evaluation triplets among 4 to train on, the first at index 1; expected none: the paper says"
    )
    assert '"Those triplets are solely used for evaluation."' in str(caught.value)
    assert caught.value.indices.tolist() == [1, 2, 3]
    assert isinstance(caught.value, ValueError)


def test_similarity_triplets_know_what_is_rated(known, tmp_path):
    files = [
        picture.save(tmp_path / f"other{i}.jpg") or f"other{i}.jpg" for i, picture in enumerate(PICTURES)
    ]
    data = SimilarityTriplets(tmp_path, triplets=[[7, 8, 9], [5, 3, 4]], images=files)
    assert data.rated.tolist() == [1]
    with pytest.raises(
        RatedTripletsError, match=r"first at index 1 \(5: other5.jpg, other3.jpg, other4.jpg\)"
    ):
        data.refuse_rated()
    assert not data.without([1]).is_rated


def test_fingerprint_bits_by_hand():
    levels = np.zeros((8, 9), dtype=np.uint8)
    levels[0, :3] = [9, 6, 4]  # steps down of 3, 2 and 4
    levels[2, 7] = 3
    image = Image.fromarray(levels.repeat(4, 0).repeat(3, 1))
    bits = int(fingerprints_of(lambda index: image, [0])[0])
    assert bits == (1 << 0) | (1 << 2) | (1 << 23)
    assert fingerprints_of(lambda index: image, [0, 0], centre=True).shape == (2,)


def test_signs_count_different_bits():
    hashes = np.random.default_rng(0).integers(0, 2**64, 50, dtype=np.uint64)
    signs = rated._signs(hashes)
    slow = [[bin(int(a) ^ int(b)).count("1") for b in hashes] for a in hashes]
    assert ((64 - signs @ signs.T) / 2).tolist() == slow


@pytest.mark.parametrize(
    "triplets", [[[0, 1]], [0, 1, 2], [[0.0, 1.0, 2.0]], [[-1, 0, 1]], torch.zeros(2, 3)], ids=str
)
def test_bad_triplets(triplets):
    with pytest.raises(ValueError, match=r"triplets: got .*, expected indices of images"):
        rated_triplets(PICTURES.__getitem__, triplets)


def test_fingerprints_of_a_function_needs_indices():
    with pytest.raises(ValueError, match="indices: got None beside a function"):
        fingerprints_of(PICTURES.__getitem__)


def test_unreadable_image_is_named(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(OSError, match=r"cannot read image .*bad.png"):
        fingerprints_of([tmp_path / "bad.png"])


def test_shipped_file_is_small_and_whole():
    assert rated._FILE.stat().st_size < 120_000
    rated._rated.cache_clear()
    signs, triplets_of = rated._rated()
    assert signs.shape == (2 * 4529, 64)
    assert set(triplets_of) == set(range(4529))
    assert len({triplet for triplets in triplets_of.values() for triplet in triplets}) == 1688


def test_others_are_not_rated():
    rng = np.random.default_rng(1)
    assert rated_triplets(PICTURES.__getitem__, rng.integers(0, 20, (200, 3))).size == 0
    assert rated_triplets(lambda index: Image.new("RGB", (9, 8), (index,) * 3), [[0, 1, 2]]).size == 0


@pytest.mark.real_data
def test_the_papers_triplets_survive_jpeg_50(similarity_triplets_root):
    data = SimilarityTriplets(similarity_triplets_root)
    some = data.without(range(60, len(data.triplets)))
    found = rated_triplets(lambda index: jpeg(some.load_image(index), 50), some.triplets[:, ::-1].copy())
    assert len(found) >= 59
