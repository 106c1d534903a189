import numpy as np
import pytest
from PIL import Image
from pytorch_metric_learning.datasets.base_dataset import BaseDataset

from dr_plugin.datasets.base import LabelledImages, first_few, open_rgb


class Three(LabelledImages):
    def generate_split(self) -> None:
        self.paths = [str(self.root / f"{name}.png") for name in "abc"]
        self.labels = [0, 1, 1]


@pytest.fixture
def root(tmp_path):
    for value, name in enumerate("abc"):
        Image.new("RGB", (4, 3), (value, 2, 3)).save(tmp_path / f"{name}.png")
    return tmp_path


def test_labelled_images_keep_the_contract_of_pml(root):
    data = Three(
        root, "val", transform=lambda image: np.asarray(image)[0, 0, 0], target_transform=lambda y: y + 10
    )
    assert isinstance(data, BaseDataset)
    assert (data.root, data.split, len(data)) == (root, "val", 3)
    assert [data[i] for i in range(3)] == [(0, 10), (1, 11), (2, 11)]
    assert data[-1] == (2, 11)
    with pytest.raises(IndexError):
        data[3]


def test_labelled_images_give_rgb_images_without_transforms(root):
    image, label = Three(str(root))[2]
    assert (image.mode, image.size, image.getpixel((0, 0)), label) == ("RGB", (4, 3), (2, 2, 3), 1)


def test_labelled_images_refuse_an_unknown_split_before_anything_else(tmp_path):
    with pytest.raises(ValueError, match=r"Three: got split='train\+test', expected 'train' or 'val'"):
        Three(tmp_path / "none", "train+test")


def test_labelled_images_refuse_a_root_that_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"Three: got root='.*none', expected an existing folder"):
        Three(tmp_path / "none")


def test_labelled_images_refuse_to_download_what_they_cannot(root):
    with pytest.raises(ValueError, match="Three has nothing to download"):
        Three(root).download_and_remove()


@pytest.mark.parametrize(
    ("mode", "suffix"), [(mode, "png") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")] + [("CMYK", "tif")]
)
def test_open_rgb_converts_every_8_bit_mode(tmp_path, mode, suffix):
    image = Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode)
    image.save(tmp_path / f"image.{suffix}")
    opened = open_rgb(str(tmp_path / f"image.{suffix}"))
    assert (opened.mode, opened.size) == ("RGB", (5, 4))
    assert (np.asarray(opened) == 255).all()


def test_open_rgb_makes_three_equal_channels_of_grey(tmp_path):
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(open_rgb(str(tmp_path / "grey.png")), np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize(("dtype", "suffix"), [(np.uint16, "png"), (np.int32, "tif"), (np.float32, "tif")])
def test_open_rgb_refuses_more_than_8_bits(tmp_path, dtype, suffix):
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(np.full((4, 4), 1000, dtype=dtype)).save(path)
    with pytest.raises(ValueError, match=f"deep.{suffix}: got '[IF].*' pixels, expected 8 bits a channel"):
        open_rgb(str(path))


@pytest.mark.parametrize("damage", ["missing", "text", "truncated"])
def test_open_rgb_names_the_file_it_cannot_read(tmp_path, damage):
    path = tmp_path / "broken.jpg"
    if damage == "text":
        path.write_text("no image")
    elif damage == "truncated":
        Image.effect_noise((64, 64), 50).save(path)
        path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(OSError, match=r"cannot read image .*broken\.jpg: "):
        open_rgb(str(path))


@pytest.mark.parametrize(("count", "text"), [(0, ""), (1, "0"), (3, "0, 1, 2"), (4, "0, 1, 2 and 1 more")])
def test_first_few_counts_the_rest(count, text):
    assert first_few([str(i) for i in range(count)]) == text


def test_open_rgb_turns_the_image_as_its_exif_says(tmp_path):
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[:2] = 255  # white above
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    opened = np.asarray(open_rgb(str(tmp_path / "turned.png")))
    assert opened.shape == (6, 4, 3)
    np.testing.assert_array_equal(opened, np.rot90(pixels, k=-1))
