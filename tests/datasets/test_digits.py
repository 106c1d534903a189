import pickle

import numpy as np
import pytest
from pytorch_metric_learning.datasets.base_dataset import BaseDataset
from sklearn.datasets import load_digits

from dr_plugin.datasets import Digits


def test_splits_are_disjoint_and_together_whole():
    train, val = Digits("train"), Digits("val")
    assert (len(train), len(val)) == (1437, 360)
    source = load_digits()
    scaled = np.rint(source.images / 16 * 255).astype(np.uint8)
    oracle = sorted((image.tobytes(), int(label)) for image, label in zip(scaled, source.target, strict=True))
    images, labels = np.concatenate([train.images, val.images]), train.labels + val.labels
    assert sorted((image.tobytes(), label) for image, label in zip(images, labels, strict=True)) == oracle
    assert (images.min(), images.max()) == (0, 255)


@pytest.mark.parametrize("val_fraction", [0.1, 0.2, 0.5])
def test_each_digit_has_its_share_in_val(val_fraction):
    whole = np.bincount(load_digits().target)
    shares = np.bincount(Digits("val", val_fraction=val_fraction).labels) / whole
    assert np.abs(shares - val_fraction).max() < 1 / whole.min()


def test_split_depends_on_the_seed_only():
    first = Digits("val")
    np.random.seed(7)  # noqa: NPY002 - the global state must not matter
    np.testing.assert_array_equal(Digits("val").images, first.images)
    assert not np.array_equal(Digits("val", seed=1).images, first.images)


def test_images_are_rgb_with_three_equal_channels():
    data = Digits("val")
    assert isinstance(data, BaseDataset)
    image, label = data[17]
    assert (image.mode, image.size, type(label)) == ("RGB", (8, 8), int)
    np.testing.assert_array_equal(np.asarray(image), np.stack([data.images[17]] * 3, axis=-1))


def test_class_names_are_the_digits():
    data = Digits()
    assert data.class_ids == data.class_names == list("0123456789")
    assert sorted(set(data.labels)) == list(range(10))


def test_data_set_applies_transforms_and_survives_pickling():
    data = pickle.loads(pickle.dumps(Digits(transform=np.asarray, target_transform=str)))
    image, label = data[-1]
    assert (image.shape, label) == ((8, 8, 3), str(data.labels[-1]))
    with pytest.raises(IndexError):
        data[len(data)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "test"}, "got split='test', expected 'train' or 'val'"),
        ({"val_fraction": 0}, "got val_fraction=0, expected a number between 0 and 1"),
        ({"val_fraction": 1.0}, "got val_fraction=1.0"),
        (
            {"val_fraction": 0.001},
            "greater or equal to the number of classes",
        ),  # 2 images cannot show 10 digits
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Digits(**arguments)
