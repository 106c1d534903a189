"""BatchAugment against torchvision, one image at a time, and against the laws of its parameters."""

from collections import Counter

import pytest
import torch
from scipy import stats
from torch.nn import functional
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as vision

from dr_plugin.datasets.augment import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    BatchAugment,
    Boxes,
    CropRanges,
    crop_resize,
    random_boxes,
    shift_flip,
)

RAW = {"mean": (0, 0, 0), "std": (1 / 255, 1 / 255, 1 / 255)}  # the output is then the pixels themselves


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(1))


def coordinates(batch: int, size: int) -> torch.Tensor:
    """Images whose channels 0 and 1 hold the row and the column of each pixel."""
    steps = torch.arange(size, dtype=torch.uint8)
    image = torch.stack(
        (steps[:, None].expand(size, size), steps.expand(size, size), torch.zeros(size, size))
    )
    return image.to(torch.uint8).expand(batch, 3, size, size)


@pytest.mark.parametrize("training", [False, True])
def test_batch_augment_normalizes_exactly_when_nothing_is_asked_for(training: bool) -> None:
    images = noise(4, 3, 16, 16)
    result = BatchAugment(16)(images, training=training)
    mean, std = torch.tensor([IMAGENET_MEAN, IMAGENET_STD], dtype=torch.float64).view(2, 3, 1, 1)
    torch.testing.assert_close(result.double(), (images.double() / 255 - mean) / std, rtol=1e-6, atol=1e-6)
    assert result.dtype == torch.float32


def test_batch_augment_leaves_the_input_alone() -> None:
    images = noise(4, 3, 16, 16)
    before = images.clone()
    BatchAugment(16, pixel_shift=3, horizontal_flip=True)(images, generator(), training=True)
    assert torch.equal(images, before)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(12, 12), (9, 14)])
def test_shift_flip_equals_pad_crop_flip_per_image(dtype: torch.dtype, size: tuple[int, int]) -> None:
    images = noise(40, 3, *size).to(dtype)
    down, right = torch.randint(-5, 6, (2, 40), generator=generator())
    flips = torch.rand(40, generator=generator()) < 0.5
    result = shift_flip(images, down, right, flips)
    for image, y, x, flip, got in zip(
        images, down.tolist(), right.tolist(), flips.tolist(), result, strict=True
    ):
        padded = vision.pad(image, [5, 5, 5, 5], padding_mode="edge")
        expected = vision.crop(padded, 5 - y, 5 - x, *size)
        assert torch.equal(got, vision.hflip(expected) if flip else expected)


def test_shift_and_flip_of_a_batch_follow_the_uniform_law() -> None:
    shift, size, batch = 2, 16, 20_000
    augment = BatchAugment(size, pixel_shift=shift, horizontal_flip=True, **RAW)
    result = augment(coordinates(batch, size), generator(), training=True).round().long()
    row, column = result[:, 0, 8, 8], result[:, 1, 8, 8]
    flipped = result[:, 1, 8, 9] < column
    down = 8 - row
    right = torch.where(flipped, size - 1 - 8, 8) - column
    assert down.abs().max() == right.abs().max() == shift
    cells = (down + shift) * 10 + (right + shift) * 2 + flipped.long()
    assert stats.chisquare(torch.bincount(cells, minlength=50).numpy()).pvalue > 1e-3


def test_flip_alone_mirrors_half_of_the_images() -> None:
    result = BatchAugment(8, horizontal_flip=True, **RAW)(coordinates(10_000, 8), generator(), training=True)
    mirrored = (result[:, 1, 0, 0] > 0).sum().item()
    assert stats.binomtest(mirrored, 10_000, 0.5).pvalue > 1e-3
    assert torch.equal(result[:, 0], coordinates(10_000, 8)[:, 0].float())


def test_shift_repeats_the_edge_pixels() -> None:
    right_by_two = shift_flip(coordinates(1, 5), torch.tensor([0]), torch.tensor([2]), torch.tensor([False]))
    assert right_by_two[0, 1, 0].tolist() == [0, 0, 0, 1, 2]
    up_by_one = shift_flip(coordinates(1, 5), torch.tensor([-1]), torch.tensor([0]), torch.tensor([False]))
    assert up_by_one[0, 0, :, 0].tolist() == [1, 2, 3, 4, 4]


@pytest.mark.parametrize("source", [(20, 20), (64, 48), (7, 9)])
@pytest.mark.parametrize("size", [5, 16, 33])
def test_crop_resize_equals_torchvision_per_image(source: tuple[int, int], size: int) -> None:
    images = noise(30, 3, *source)
    boxes = random_boxes(30, *source, CropRanges(), generator())
    result = crop_resize(images, boxes, size)
    for index in range(30):
        top, left, height, width = (int(edge[index]) for edge in boxes)
        image = images[index].float()
        expected = vision.resized_crop(image, top, left, height, width, [size, size], antialias=True)
        torch.testing.assert_close(result[index], expected, rtol=1e-4, atol=1e-3)


def test_crop_resize_is_exact_under_autocast() -> None:
    images, whole = noise(2, 3, 8, 8), Boxes(*(torch.tensor([edge, edge]) for edge in (0, 0, 8, 8)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(crop_resize(images, whole, 8), images.float())


@pytest.mark.parametrize(
    ("height", "width", "ranges"),
    [
        (4, 5, CropRanges((0.3, 0.9))),
        (5, 5, CropRanges((0.5, 1.0), (0.4, 2.0))),
        (3, 9, CropRanges((0.6, 1.0))),
    ],
)
def test_random_boxes_follow_the_law_of_torchvision(height: int, width: int, ranges: CropRanges) -> None:
    """The third case is often, but not always, torchvision's central fallback."""
    image, draws = torch.zeros(3, height, width), 6000
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = [
            RandomResizedCrop.get_params(image, list(ranges.scale), list(ranges.ratio)) for _ in range(draws)
        ]
    got = torch.stack(random_boxes(draws, height, width, ranges, generator()), 1).tolist()
    drawn = (Counter(map(tuple, got)), Counter(expected))
    counts = torch.tensor([[counter[box] for box in sorted(drawn[0] | drawn[1])] for counter in drawn])
    common = counts[:, counts.sum(0) >= 20].numpy()
    assert counts[:, counts.sum(0) < 20].sum() < 0.02 * 2 * draws
    assert stats.chi2_contingency(common).pvalue > 1e-3


@pytest.mark.parametrize(("height", "width"), [(10, 400), (400, 10)])
def test_random_boxes_fall_back_to_the_central_crop_of_torchvision(height: int, width: int) -> None:
    ranges = CropRanges((1.0, 1.0), (3 / 4, 4 / 3))
    expected = RandomResizedCrop.get_params(torch.zeros(3, height, width), [1.0, 1.0], [3 / 4, 4 / 3])
    got = torch.stack(random_boxes(3, height, width, ranges, generator()), 1)
    assert got.tolist() == [list(expected)] * 3


def test_random_boxes_keep_their_ranges() -> None:
    boxes = random_boxes(20_000, 500, 600, CropRanges((0.2, 0.5), (0.8, 1.5)), generator())
    share = (boxes.height * boxes.width) / (500 * 600)
    ratio = boxes.width / boxes.height
    assert (share.min(), share.max()) == pytest.approx((0.2, 0.5), abs=0.003)
    assert (ratio.min(), ratio.max()) == pytest.approx((0.8, 1.5), abs=0.01)
    assert stats.kstest(share.numpy(), stats.uniform(0.2, 0.3).cdf).pvalue > 1e-3
    assert boxes.top.min() == 0
    assert (boxes.top + boxes.height).max() == 500
    assert (boxes.left + boxes.width).max() == 600


def test_random_resized_crop_of_the_whole_image_is_the_identity() -> None:
    images = noise(4, 3, 12, 12)
    augment = BatchAugment(12, random_resized_crop={"scale": (1, 1), "ratio": (1, 1)}, **RAW)
    torch.testing.assert_close(augment(images, generator(), training=True), images.float())


@pytest.mark.parametrize("size", [(8, 8), (30, 30), (24, 40)])
def test_resizing_equals_torchvision_per_image(size: tuple[int, int]) -> None:
    images = noise(3, 3, *size)
    result = BatchAugment(20, **RAW)(images, training=False)
    for got, image in zip(result, images, strict=True):
        expected = vision.resize(image.float(), [20, 20], antialias=True)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-3)


def test_pixel_shift_counts_pixels_of_the_resized_image() -> None:
    images = noise(50, 3, 8, 8)
    resized = BatchAugment(20, **RAW)(images, training=False)
    shifted = BatchAugment(20, pixel_shift=1, **RAW)(images, generator(), training=True)
    padded = functional.pad(resized, (1, 1, 1, 1), mode="replicate")
    for index in range(50):
        windows = padded[index].unfold(1, 20, 1).unfold(2, 20, 1).permute(1, 2, 0, 3, 4).reshape(9, 3, 20, 20)
        assert (windows == shifted[index]).flatten(1).all(1).any()


def test_images_of_a_batch_get_parameters_of_their_own() -> None:
    augment = BatchAugment(16, random_resized_crop={}, pixel_shift=4, horizontal_flip=True)
    result = augment(noise(1, 3, 16, 16).expand(32, 3, 16, 16), generator(), training=True)
    assert len(torch.unique(result.flatten(1), dim=0)) == 32


@pytest.mark.parametrize(
    "settings", [{"pixel_shift": 3, "horizontal_flip": True}, {"random_resized_crop": {}}]
)
def test_batch_augment_repeats_from_the_generators_state_only(settings: dict[str, object]) -> None:
    augment, source, images = BatchAugment(16, **settings), generator(), noise(8, 3, 16, 16)
    state, outside = source.get_state(), torch.get_rng_state()
    first, second = (augment(images, source, training=True) for _ in range(2))
    assert not torch.equal(first, second)
    source.set_state(state)
    assert torch.equal(augment(images, source, training=True), first)
    assert torch.equal(torch.get_rng_state(), outside)


def test_evaluation_draws_nothing_and_ignores_the_augmentation() -> None:
    augment, images, source = (
        BatchAugment(16, pixel_shift=3, random_resized_crop={}),
        noise(4, 3, 20, 20),
        generator(),
    )
    state = source.get_state()
    assert torch.equal(augment(images, source, training=False), BatchAugment(16)(images, training=False))
    assert torch.equal(source.get_state(), state)


@pytest.mark.parametrize("settings", [{}, {"pixel_shift": 2}, {"random_resized_crop": {}}])
@pytest.mark.parametrize("source", [16, 24])
def test_batch_augment_of_an_empty_batch_is_empty(settings: dict[str, object], source: int) -> None:
    augment = BatchAugment(16, **settings)
    result = augment(torch.empty(0, 3, source, source, dtype=torch.uint8), generator(), training=True)
    assert (result.shape, result.dtype) == ((0, 3, 16, 16), torch.float32)


@pytest.mark.parametrize("settings", [{}, {"pixel_shift": 2}, {"random_resized_crop": {}}])
def test_batch_augment_gives_the_memory_format_that_is_asked_for(settings: dict[str, object]) -> None:
    images = noise(4, 3, 16, 16)
    plain = BatchAugment(16, **settings)(images, generator(), training=True)
    last = BatchAugment(16, memory_format=torch.channels_last, **settings)(images, generator(), training=True)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert plain.is_contiguous()
    assert torch.equal(plain, last)


@pytest.mark.parametrize(
    "settings", [{"pixel_shift": 2, "horizontal_flip": True}, {"random_resized_crop": {}}]
)
def test_batch_augment_takes_batches_that_are_not_contiguous(settings: dict[str, object]) -> None:
    images = noise(4, 3, 16, 16)
    augment, last = BatchAugment(16, **settings), images.contiguous(memory_format=torch.channels_last)
    expected = augment(images, generator(), training=True)
    torch.testing.assert_close(augment(last, generator(), training=True), expected)


@pytest.mark.parametrize("size", [16, 24])
@pytest.mark.parametrize(
    "settings", [{"pixel_shift": 2, "horizontal_flip": True}, {"random_resized_crop": {}}]
)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batch_augment_is_the_same_on_a_gpu(settings: dict[str, object], size: int) -> None:
    images, augment = noise(64, 3, 24, 24), BatchAugment(size, **settings)
    on_gpu = augment(images.cuda(), generator(), training=True)
    assert on_gpu.is_cuda
    torch.testing.assert_close(
        on_gpu.cpu(), augment(images, generator(), training=True), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 0}, "image_size: got 0"),
        ({"pixel_shift": -1}, "pixel_shift: got -1"),
        ({"pixel_shift": 16}, "pixel_shift: got 16"),
        ({"mean": (0.5, 0.5)}, "mean: got .* three"),
        ({"mean": (0.5, 0.5, float("nan"))}, "mean: got .* finite"),
        ({"std": (0.2, 0.2, 0)}, "std: got .* positive"),
        ({"random_resized_crop": {"scale": (0.9, 0.1)}}, r"scale: got \(0.9, 0.1\)"),
        ({"random_resized_crop": {"scale": (0, 1)}}, "scale: got"),
        ({"random_resized_crop": {"scale": (0.5, 1.5)}}, "scale: got .* <= 1"),
        ({"random_resized_crop": {"ratio": (2, 1)}}, "ratio: got"),
        ({"random_resized_crop": {"ratio": (1, float("inf"))}}, "ratio: got"),
        ({"random_resized_crop": {"scale": (0.5,)}}, "scale: got"),
        ({"random_resized_crop": {"scales": (0.5, 1)}}, "scales.*expected the keys scale and ratio"),
    ],
)
def test_batch_augment_refuses_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchAugment(**{"image_size": 16, **settings})


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, 16, 16), "torch.float32, expected torch.uint8"),
        (torch.zeros(3, 16, 16, dtype=torch.uint8), r"\(3, 16, 16\), expected \(B, 3, H, W\)"),
        (torch.zeros(2, 1, 16, 16, dtype=torch.uint8), r"expected \(B, 3, H, W\)"),
        (torch.zeros(2, 3, 0, 16, dtype=torch.uint8), r"expected \(B, 3, H, W\)"),
    ],
)
def test_batch_augment_refuses_images(images: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchAugment(16)(images, training=False)


@pytest.mark.parametrize(
    "settings", [{"pixel_shift": 2}, {"horizontal_flip": True}, {"random_resized_crop": {}}]
)
def test_batch_augment_refuses_to_draw_without_a_generator(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="generator: got None"):
        BatchAugment(16, **settings)(noise(2, 3, 16, 16), training=True)


@pytest.mark.parametrize(
    "settings", [{"pixel_shift": 2, "horizontal_flip": True}, {"random_resized_crop": {}}]
)
def test_parts_of_a_batch_are_augmented_as_the_whole(settings: dict[str, object]) -> None:
    augment, images = BatchAugment(8, **settings), noise(7, 3, 8, 8)
    drawn = generator()
    whole = augment(images, drawn, training=True)
    for start, stop in ((0, 3), (3, 7), (7, 7)):
        own = generator()
        part = augment(images[start:stop], own, training=True, part_of=(start, 7))
        torch.testing.assert_close(part, whole[start:stop])
        assert torch.equal(own.get_state(), drawn.get_state())


@pytest.mark.parametrize("part_of", [(0, 1), (-1, 4), (3, 4)])
def test_parts_outside_of_the_batch_are_refused(part_of: tuple[int, int]) -> None:
    with pytest.raises(
        ValueError, match=r"part_of: got .*, expected (that they lie within the total|a whole number)"
    ):
        BatchAugment(8)(noise(2, 3, 8, 8), training=True, part_of=part_of)
