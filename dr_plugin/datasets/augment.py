"""Augmentation, resizing and normalisation of whole batches, on the device that trains."""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from dr_plugin.checks import check_flag, check_per_channel, check_whole, check_wholes, shown

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CROP_TRIALS = 10  # torchvision's RandomResizedCrop gives up after as many


class CropRanges(NamedTuple):
    """Share of the image's area, and width / height, of a random resized crop; torchvision's defaults."""

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)


class Boxes(NamedTuple):
    """One crop per image: four long tensors (B,), in pixels of the source."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


class _Part(NamedTuple):
    """Which images of a batch are at hand."""

    start: int
    stop: int
    total: int


class BatchAugment:
    """Turns a uint8 batch into the network's input; every image of the batch gets its own random parameters.

    In this order: a random resized crop, or else resizing to image_size (antialiased); shift and flip;
    (x / 255 - mean) / std. Evaluation (training=False) only resizes and normalises.

    - The paper's random pixel shift moves the image by whole pixels of the output, uniform in
      -pixel_shift..pixel_shift on each axis. The paper does not say what fills the uncovered border: here the
      image's edge pixels are repeated.
    - Parameters are drawn on the CPU from the generator that is passed in, and nowhere else: a batch is
      augmented alike on every device. Processes that share a batch draw for the whole of it (`part_of`): it is
      augmented alike however many they are.
    - An image that is not square is stretched to the square (PackedImages crops where it is given a size).
    - An empty batch gives an empty batch.

    Args:
        image_size: Height and width S of the output.
        pixel_shift: Largest shift in pixels; 0 is none; smaller than image_size.
        horizontal_flip: Mirror each image with probability 1/2.
        random_resized_crop: None, or {"scale": (low, high), "ratio": (low, high)}: the crop's share of the
            area and its width / height, with the defaults of torchvision's RandomResizedCrop.
        mean: Per-channel mean of images in [0, 1].
        std: Per-channel standard deviation of images in [0, 1].
        memory_format: Layout of the output, for example torch.channels_last.
    Shape:
        images (B, 3, H, W) uint8 -> (B, 3, S, S) float32 on the same device.
    Raises:
        ValueError: if an argument is out of its range, the images are not such a batch, or something random
            is to be drawn and there is no CPU generator.
    Example:
        >>> augment = BatchAugment(64, pixel_shift=6, horizontal_flip=True)
        >>> images = torch.zeros(8, 3, 64, 64, dtype=torch.uint8)
        >>> augment(images, torch.Generator().manual_seed(0), training=True).shape
        torch.Size([8, 3, 64, 64])

    References:
        Wang et al., Learning Fine-grained Image Similarity with Deep Ranking, CVPR 2014 (random pixel shift).
    """

    def __init__(
        self,
        image_size: int,
        *,
        pixel_shift: int = 0,
        horizontal_flip: bool = False,
        random_resized_crop: Mapping[str, Sequence[float]] | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.image_size = check_whole("image_size", image_size, minimum=1, below=2**31)
        self.pixel_shift = check_whole("pixel_shift", pixel_shift, minimum=0, below=self.image_size)
        self.horizontal_flip = check_flag("horizontal_flip", horizontal_flip)
        if not isinstance(memory_format, torch.memory_format):
            raise ValueError(f"memory_format: got {shown(memory_format)}, expected a torch.memory_format")
        self.crop = None if random_resized_crop is None else _crop_ranges(random_resized_crop)
        self.memory_format = memory_format
        self.mean, self.std = check_per_channel("mean", mean), check_per_channel("std", std)
        if min(self.std) <= 0:
            raise ValueError(f"std: got {self.std}, expected positive numbers")
        self._constants: dict[torch.device, Tensor] = {}  # device -> (scale, bias)

    def __call__(
        self,
        images: Tensor,
        generator: torch.Generator | None = None,
        *,
        training: bool,
        part_of: tuple[int, int] | None = None,
    ) -> Tensor:
        """The batch augmented (training) or only resized (not), and normalised.

        ``part_of`` = (start, total) says that the images are those from ``start`` on of a batch of ``total``.
        """
        _check_images(images)
        place = [0, len(images)] if part_of is None else check_wholes("part_of", part_of, minimum=0)
        if len(place) != 2:
            raise ValueError(f"part_of: got {part_of}, expected where the images start, and the total")
        start, total = place
        if not 0 <= start <= start + len(images) <= total:
            raise ValueError(
                f"part_of: got ({start}, {total}) for {len(images)} images, expected that they lie within the total"
            )
        random = training and (self.pixel_shift > 0 or self.horizontal_flip or self.crop is not None)
        if random and (generator is None or generator.device.type != "cpu"):
            got = "None" if generator is None else f"one on {generator.device}"
            raise ValueError(f"generator: got {got}, expected a torch.Generator on the CPU to draw from")
        with torch.no_grad():
            part = _Part(start, start + len(images), total)
            images = self._sized(images, part, generator if random else None)
            if random and (self.pixel_shift > 0 or self.horizontal_flip):
                images = self._shifted(images, part, generator)
            return self._normalized(images)

    def _sized(self, images: Tensor, part: _Part, generator: torch.Generator | None) -> Tensor:
        """The batch as (B, 3, S, S), cropped at random with a generator; still uint8 if it had that size."""
        size = self.image_size
        if generator is not None and self.crop is not None:
            height, width = images.shape[2:]
            boxes = random_boxes(part.total, height, width, self.crop, generator)
            return crop_resize(images, Boxes(*(one[part.start : part.stop] for one in boxes)), size)
        if images.shape[2:] == (size, size):
            return images
        return functional.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)

    def _shifted(self, images: Tensor, part: _Part, generator: torch.Generator | None) -> Tensor:
        shift = self.pixel_shift
        offsets = torch.randint(-shift, shift + 1, (2, part.total), generator=generator)
        flips = torch.zeros(part.total, dtype=torch.bool)
        if self.horizontal_flip:
            flips = torch.rand(part.total, generator=generator) < 0.5
        own = slice(part.start, part.stop)
        return shift_flip(images, offsets[0, own], offsets[1, own], flips[own])

    def _normalized(self, images: Tensor) -> Tensor:
        device = images.device
        if device not in self._constants:  # kept, because a copy at each batch would wait for a GPU
            self._constants[device] = normalization(self.mean, self.std).to(device)
        scale, bias = self._constants[device]
        # In place: the float32 batch is ours. The layout comes last because arithmetic is faster before.
        return images.float().mul_(scale).add_(bias).contiguous(memory_format=self.memory_format)


def normalization(mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Scale and bias (2, 3, 1, 1) float32: of pixels x in 0..255, x scale + bias is (x / 255 - mean) / std."""
    means, deviations = torch.tensor([list(mean), list(std)], dtype=torch.float64)
    return torch.stack((1 / (255 * deviations), -means / deviations)).float().view(2, 3, 1, 1)


def shift_flip(images: Tensor, down: Tensor, right: Tensor, flips: Tensor) -> Tensor:
    """Each image moved by whole pixels, its edges repeated into the border, then mirrored where flips says.

    Shape:
        images (B, C, H, W) of any dtype; down, right (B,) long and flips (B,) bool on the CPU.
    """
    batch, channels, height, width = images.shape
    parameters = torch.stack((down, right, flips.long())).to(images.device, non_blocking=True)
    down, right, mirrored = parameters[:, :, None]
    x = torch.arange(width, device=images.device)
    y = torch.arange(height, device=images.device)
    # Where each row (B, H) and each column (B, W) comes from.
    rows = (y - down).clamp_(0, height - 1)
    columns = (torch.where(mirrored == 1, width - 1 - x, x) - right).clamp_(0, width - 1)
    # One gather over flat pixels is faster on CPUs than advanced indexing or a gather per axis.
    pixels = (rows[:, :, None] * width + columns[:, None, :]).view(batch, 1, height * width)
    flat = images.reshape(batch, channels, height * width)
    return flat.gather(2, pixels.expand_as(flat)).view(images.shape)


def random_boxes(
    count: int, height: int, width: int, ranges: CropRanges, generator: torch.Generator | None
) -> Boxes:
    """Crops drawn as torchvision's RandomResizedCrop draws them, but one an image instead of one a batch.

    Area uniform in scale, width / height log-uniform in ratio; the first of ten draws that fits into the
    image is placed uniformly; if none fits, the largest central crop whose ratio is in range.
    """
    areas, aspects = torch.rand(2, count, CROP_TRIALS, generator=generator, dtype=torch.float64)
    areas = height * width * (ranges.scale[0] + (ranges.scale[1] - ranges.scale[0]) * areas)
    low, high = math.log(ranges.ratio[0]), math.log(ranges.ratio[1])
    aspects = torch.exp(low + (high - low) * aspects)
    widths, heights = (areas * aspects).sqrt().round().long(), (areas / aspects).sqrt().round().long()
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    first = fits.int().argmax(1, keepdim=True)
    any_fits = fits.any(1)

    aspect = min(max(width / height, ranges.ratio[0]), ranges.ratio[1])
    central_width = max(1, min(width, round(height * aspect)))
    central_height = max(1, min(height, round(width / aspect)))
    box_width = torch.where(any_fits, widths.gather(1, first)[:, 0], central_width)
    box_height = torch.where(any_fits, heights.gather(1, first)[:, 0], central_height)

    down, right = torch.rand(2, count, generator=generator, dtype=torch.float64)
    top = torch.where(any_fits, (down * (height - box_height + 1)).long(), (height - central_height) // 2)
    left = torch.where(any_fits, (right * (width - box_width + 1)).long(), (width - central_width) // 2)
    return Boxes(top, left, box_height, box_width)


def crop_resize(images: Tensor, boxes: Boxes, size: int) -> Tensor:
    """Each image's own box resized to (size, size), bilinear and antialiased: (B, C, S, S) float32 in 0..255.

    Resizing is linear in rows and in columns, so the crops of a whole batch are two batched matrix products,
    Y image X', with the weights of torchvision's `resized_crop(..., antialias=True)`.
    """
    batch, channels, height, width = images.shape
    boxes = Boxes(*torch.stack(boxes).to(images.device, non_blocking=True))
    rows = _resize_weights(boxes.top, boxes.height, height, size)
    columns = _resize_weights(boxes.left, boxes.width, width, size)
    with torch.autocast(images.device.type, enabled=False):  # pixels need more than bfloat16's 8 bits
        lines = images.transpose(1, 2).float().reshape(batch, height * channels, width)
        narrowed = (lines @ columns.mT).view(batch, height, channels * size)
        return (rows @ narrowed).view(batch, size, channels, size).transpose(1, 2)


def _resize_weights(start: Tensor, length: Tensor, source: int, size: int) -> Tensor:
    """(B, size, source) float32: what each pixel of start..start+length-1 gives to each new pixel."""
    start, length = start[:, None, None], length[:, None, None]
    scale = length.float() / size
    centre = start + (torch.arange(size, device=start.device)[:, None] + 0.5) * scale  # (B, size, 1)
    pixel = torch.arange(source, device=start.device)
    inside = (pixel >= start) & (pixel < start + length)  # (B, 1, source)
    distance = (pixel + 0.5 - centre).abs_().div_(scale.clamp(min=1))  # a triangle, wider where images shrink
    weights = distance.neg_().add_(1).clamp_(min=0).mul_(inside)
    return weights.div_(weights.sum(2, keepdim=True))


def _crop_ranges(ranges: Mapping[str, Sequence[float]]) -> CropRanges:
    if not isinstance(ranges, Mapping):
        raise ValueError(
            f"random_resized_crop: got {shown(ranges)}, expected None, or scale and ratio by name"
        )
    if unknown := sorted(set(ranges) - set(CropRanges._fields)):
        raise ValueError(f"random_resized_crop: got {unknown}, expected the keys scale and ratio")
    for name, values in ranges.items():
        limit = 1.0 if name == "scale" else sys.float_info.max
        if (
            not isinstance(values, list | tuple)
            or len(values) != 2
            or not 0 < values[0] <= values[1] <= limit
        ):
            most = " <= 1" if name == "scale" else ""
            expected = f"[low, high] with 0 < low <= high{most}"
            raise ValueError(f"random_resized_crop {name}: got {shown(values)}, expected {expected}")
    return CropRanges(**{name: (float(low), float(high)) for name, (low, high) in ranges.items()})


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8:
        raise ValueError(f"images: got {images.dtype}, expected torch.uint8 in 0..255, not normalised")
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise ValueError(f"images: got shape {tuple(images.shape)}, expected (B, 3, H, W)")
