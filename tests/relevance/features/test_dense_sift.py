import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.color import rgb2yiq

from dr_plugin.relevance.features.dense_sift import DenseSIFT
from dr_plugin.relevance.image_rows import ImageRows


def noise(count, height=30, width=34, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, height, width), dtype=np.uint8)


def ramp(degrees, side=32):
    """Brightness that rises evenly in one direction: 0 to the right, 90 downwards."""
    angle = math.radians(degrees)
    y, x = np.indices((side, side)) - (side - 1) / 2
    values = 128 + 2.5 * (x * math.cos(angle) + y * math.sin(angle))
    return np.broadcast_to(values.round().astype(np.uint8), (1, 3, side, side))


def described_by_loops(image, top, left, cell, root):
    """One patch of one image (3, H, W), pixel by pixel."""
    luminance = rgb2yiq(np.moveaxis(image, 0, -1))[..., 0]
    smooth = gaussian_filter(luminance, cell / 6, mode="nearest")
    down, across = np.gradient(smooth)
    histogram = np.zeros((4, 4, 8))
    for y, x in np.ndindex(*smooth.shape):
        length = math.hypot(down[y, x], across[y, x])
        direction = math.degrees(math.atan2(down[y, x], across[y, x])) % 360 / 45
        for row, column in np.ndindex(4, 4):
            near = [
                1 - abs(place + 0.5 - (start + (number + 0.5) * cell)) / cell
                for place, start, number in ((y, top, row), (x, left, column))
            ]
            if min(near) <= 0:
                continue
            window = math.exp(-((row - 1.5) ** 2 + (column - 1.5) ** 2) / (2 * 2**2))
            lower = int(direction) % 8
            share = direction - int(direction)
            histogram[row, column, lower] += length * near[0] * near[1] * window * (1 - share)
            histogram[row, column, (lower + 1) % 8] += length * near[0] * near[1] * window * share
    values = histogram.ravel() / np.linalg.norm(histogram)
    values = np.minimum(values, 0.2)
    return np.sqrt(values / values.sum()) if root else values / np.linalg.norm(values)


@pytest.mark.parametrize("root", [False, True])
def test_descriptors_against_loops(root):
    images = noise(2)
    sift = DenseSIFT((4, 5), step=7, root=root)
    found = sift(images)
    # of 30 x 34 pixels: patches of 16 at 0, 7, 14 and 2, 9, 16; of 20 at 1.5, 8.5 and 0, 7, 14
    starts = [(top, left, 4) for top in (0, 7, 14) for left in (2, 9, 16)]
    starts += [(top, left, 5) for top in (1.5, 8.5) for left in (0, 7, 14)]
    assert found.shape == (2, len(starts), 128)
    for number in (0, 1, 5, 8, 9, 13, 14):
        expected = described_by_loops(images[1], *starts[number], root)
        np.testing.assert_allclose(found[1, number], expected, atol=2e-5)
    middles = [((top + 2 * cell) / 30, (left + 2 * cell) / 34) for top, left, cell in starts]
    np.testing.assert_allclose(sift.places(30, 34), middles)


@pytest.mark.parametrize("number", range(8))
def test_an_even_rise_is_in_its_own_direction(number):
    descriptor = DenseSIFT((4,), step=16)(ramp(45 * number))[0, 0].view(4, 4, 8)
    mass = descriptor.square().sum((0, 1))  # shares, of RootSIFT
    assert mass.argmax() == number
    assert mass[number] > 0.85


@pytest.mark.parametrize("root", [False, True])
def test_a_textured_patch_has_length_1_and_a_flat_one_is_0(root):
    images = np.concatenate([noise(1, 30, 64), np.full((1, 3, 30, 64), 200, np.uint8)])
    images[1, :, :, :32] = np.array([10, 90, 250])[:, None, None]
    lengths = torch.linalg.vector_norm(DenseSIFT((4,), 6, root)(images), dim=2)
    np.testing.assert_allclose(lengths[0], 1, atol=1e-5)
    assert set(lengths[1].round(decimals=4).tolist()) == {0, 1}  # both sides of the edge are flat
    assert not DenseSIFT((4,), 6, root)(np.full((1, 3, 30, 34), 77, np.uint8)).any()


def test_contrast_and_brightness_change_little():
    image = noise(1) // 2
    brighter = image + 60
    np.testing.assert_allclose(DenseSIFT((4,), 6)(image), DenseSIFT((4,), 6)(brighter), atol=1e-3)
    np.testing.assert_allclose(DenseSIFT((4,), 6)(image), DenseSIFT((4,), 6)(image * 2), atol=1e-3)


def test_a_shifted_image_has_shifted_descriptors():
    image = noise(1, 64, 64)
    moved = np.roll(image, (6, 12), axis=(2, 3))
    sift = DenseSIFT((4,), 6)
    before, after = (sift(of).view(9, 9, 128) for of in (image, moved))
    np.testing.assert_allclose(after[3:-1, 4:-1], before[2:-2, 2:-3], atol=1e-5)


def test_images_do_not_depend_on_their_batch():
    images = noise(5)
    sift = DenseSIFT((4, 6), 5)
    alone = torch.cat([sift(image[None]) for image in images])
    np.testing.assert_allclose(sift(images), alone, atol=1e-6)


def test_sample_is_seeded_bounded_and_textured():
    images = noise(20)
    images[0] = 0
    sift = DenseSIFT((4,), 6)
    sample = sift.sample(ImageRows(images), images=20, count=31, seed=3)
    assert sample.shape == (31, 128)
    assert sample.any(dim=1).all()
    assert torch.equal(sample, sift.sample(ImageRows(images), images=20, count=31, seed=3))
    assert not torch.equal(sample, sift.sample(ImageRows(images), images=20, count=31, seed=4))
    everything = {tuple(row.tolist()) for row in sift(images).flatten(0, 1)}
    assert {tuple(row.tolist()) for row in sample} <= everything
    of_each = [{tuple(row.tolist()) for row in of_image} for of_image in sift(images)]
    shares = [sum(tuple(row.tolist()) in of for row in sample) for of in of_each]
    assert (shares[0], sorted(shares[1:])) == (0, [*[1] * 7, *[2] * 12])  # of 19 images, 7 give one less
    assert 1 in shares[1:11]  # any of them, not the last ones
    assert len(sift.sample(ImageRows(images), images=20, count=10**6, seed=0)) == 19 * 12
    assert len(sift.sample(ImageRows(images[1:]), images=3, count=10**6, seed=0)) == 3 * 12


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (((), 4), r"cell_sizes: got \(\), expected a tuple of at least one"),
        ((4, 4), "cell_sizes: got 4, expected whole numbers in a list or a tuple"),
        (((4, 0), 4), "cell_sizes: got 0, expected a whole number"),
        (((4, 4), 4), r"got \(4, 4\), expected different sizes"),
        (((4,), 0), "step: got 0"),
        (((4,), 1.5), "step: got 1.5"),
    ],
)
def test_bad_arguments_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        DenseSIFT(*arguments)


def test_images_smaller_than_a_patch_are_refused():
    with pytest.raises(ValueError, match="got images of 30 x 34 pixels, expected at least 32 x 32"):
        DenseSIFT((4, 8), 4)(noise(1))
