import numpy as np
import pytest
import torch

from dr_plugin.evaluation.data import LabelledData, RatedData, balanced_sample, open_data


@pytest.fixture(scope="module")
def rated_root(tmp_path_factory, make_rated_triplets):
    return make_rated_triplets(tmp_path_factory.mktemp("rated"))


def test_rated_triplets_are_opened_by_folder_by_file_and_by_name(rated_root, tmp_path):
    for spec in (str(rated_root), str(rated_root / "triplets.csv"), f"SimilarityTriplets:{rated_root}"):
        data = open_data(spec, image_size=16, cache=str(tmp_path))
        assert isinstance(data, RatedData)
        assert data.triplets.shape == (24, 3)
        assert data.images.image_size == (16, 16)
        assert len(data.images) == 72
        assert len(set(data.text_queries)) == 4


def test_rated_images_are_squeezed_whole(rated_root, tmp_path):
    """The 40 x 48 images keep their edges: nothing is cropped away."""
    from PIL import Image

    data = open_data(str(rated_root), image_size=16, cache=str(tmp_path))
    index = int(data.triplets[1, 0])
    whole = Image.open(rated_root / "images" / "0-1-q.png").resize((16, 16), Image.Resampling.BILINEAR)
    stored = data.images.batch([index])[0][0].permute(1, 2, 0).numpy()
    assert np.abs(stored.astype(int) - np.asarray(whole).astype(int)).max() <= 2


def test_labelled_data_sets_are_opened_by_path_and_by_name(tmp_path, make_tiny_imagenet):
    root = make_tiny_imagenet(tmp_path / "data", classes=3, train=4, val=2)
    cache = str(tmp_path / "cache")
    for spec in (str(root), str(root / "tiny-imagenet-200"), f"TinyImageNet:{root}"):
        data = open_data(spec, image_size=16, cache=cache)
        assert isinstance(data, LabelledData)
        assert (data.name, len(data.query), len(data.gallery)) == ("TinyImageNet", 6, 12)
    folders = open_data(str(root / "tiny-imagenet-200" / "train"), image_size=16, cache=cache)
    assert folders.name == "ClassFolders"


def test_digits_need_no_root(tmp_path):
    data = open_data("Digits", image_size=8, cache=str(tmp_path))
    assert len(data.query) + len(data.gallery) == 1797


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere", r"got 'nowhere', expected a folder, a file of triplets, or one of TinyImageNet"),
        ("TinyImageNet", r"got 'TinyImageNet', expected its folder, as TinyImageNet:data"),
        ("Digits:data", r"got 'Digits:data', expected no root"),
        ("TinyImagenet:data", "did you mean TinyImageNet"),
    ],
)
def test_unknown_data_set_is_one_clear_error(spec, message):
    with pytest.raises(ValueError, match=message):
        open_data(spec, image_size=16)


def test_balanced_sample_takes_classes_equally():
    labels = [0] * 50 + [1] * 30 + [7] * 3
    chosen = balanced_sample(labels, 23, seed=1)
    assert np.bincount(np.array(labels)[chosen])[[0, 1, 7]].tolist() == [10, 10, 3]
    assert (np.diff(chosen) > 0).all()


def test_balanced_sample_of_more_than_there_are_is_all():
    assert balanced_sample([2, 2, 5], 9, seed=0).tolist() == [0, 1, 2]
    assert balanced_sample([2, 2, 5], None, seed=0).tolist() == [0, 1, 2]


def test_balanced_sample_is_uniform_within_a_class():
    labels = np.repeat([0, 1], 10)
    counts = np.zeros(20)
    for seed in range(2000):
        counts[balanced_sample(labels, 4, seed)] += 1
    expected = np.full(20, 2000 * 4 / 20)
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert statistic < 45  # chi-square, 19 degrees of freedom: 1 in 1,000


def test_balanced_sample_depends_on_the_seed_alone():
    labels = torch.arange(100) % 7
    assert (
        balanced_sample(labels.tolist(), 30, 3).tolist() == balanced_sample(labels.tolist(), 30, 3).tolist()
    )
    assert (
        balanced_sample(labels.tolist(), 30, 3).tolist() != balanced_sample(labels.tolist(), 30, 4).tolist()
    )


def test_triplets_whose_images_lie_elsewhere_or_are_missing(rated_root, tmp_path):
    lines = (rated_root / "triplets.csv").read_text().splitlines()
    (tmp_path / "mine.csv").write_text(
        "\n".join([*lines, "query 9,images/none.png,images/0-0-p.png,images/0-0-n.png"])
    )
    cache = str(tmp_path / "cache")
    with pytest.raises(ValueError, match=r"none\.png"):
        open_data(str(tmp_path / "mine.csv"), image_size=16, cache=cache, images=rated_root)
    data = open_data(
        str(tmp_path / "mine.csv"), image_size=16, cache=cache, images=rated_root, skip_missing=True
    )
    assert len(data.triplets) == 24
    assert data.counts["triplets_without_images"] == 1
    with pytest.raises(ValueError, match="expected them with triplets alone"):
        open_data("Digits", image_size=8, cache=cache, skip_missing=True)
