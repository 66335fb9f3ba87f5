# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""How images are varied in training: cut to one size by PIL, then varied by OpenCV, or by torch on the device."""

import cv2
import numpy as np
import torch
from PIL import Image
from transformers import BaseImageProcessor

from run_scripts.data.augmentation_steps import STEPS, Resize, Step


class Augmentation:
    """Cuts images to one size and varies them.

    A `RandomResizedCrop`, which must come first, is done by PIL, which computes no pixel outside the crop and takes
    images of any size. Where no step names a size, the image processor resizes and crops before the first step, as in
    evaluation. The other steps are done by `vary_images` on workers or by `vary_batch` on any device: both draw the
    same from a seed, so they differ by rounding alone.

    Args:
        steps: names in [`STEPS`] in their order, each with its arguments. `RandomResizedCrop` may come before them.
        image_processor: gives size, mean and standard deviation.

    Raises:
        ValueError: there is no such step, its arguments are wrong, or the last size is not the image processor's.
    """

    def __init__(self, steps: dict[str, dict], image_processor: BaseImageProcessor):
        steps = dict(steps)
        self.image_processor = image_processor
        self.crop = None
        if next(iter(steps), None) == "RandomResizedCrop":
            self.crop = _build("RandomResizedCrop", RandomResizedCrop, steps.pop("RandomResizedCrop"))
        unknown = [name for name in steps if name not in STEPS]
        if unknown:
            raise ValueError(f"augmentation must name {[*STEPS]}, and at first RandomResizedCrop, got {unknown[0]!r}")
        self.steps: list[Step] = [_build(name, STEPS[name], arguments) for name, arguments in steps.items()]
        self.size = (image_processor.crop_size["height"], image_processor.crop_size["width"])
        sizes = [step.size for step in (self.crop, *self.steps) if isinstance(step, RandomResizedCrop | Resize)]
        self.has_size = len(sizes) > 0
        if self.has_size and sizes[-1] != self.size:
            raise ValueError(f"augmentation must end in images of {self.size}, got {sizes[-1]}")

    def cut(self, images: list[Image.Image], seed: int) -> torch.Tensor:
        """Images as bytes of shape (batch_size, height, width, 3), as the steps after the crop take them.

        Raises:
            ValueError: nothing brings images of several sizes to one.
        """
        if not self.has_size:
            options = {"do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
            return self.image_processor(images, **options)["pixel_values"].permute(0, 2, 3, 1).contiguous()
        images = [self._to_rgb(image) for image in images]
        if self.crop is not None:
            random = np.random.default_rng(seed)
            images = [self.crop(image, random) for image in images]
        sizes = {image.size for image in images}
        if len(sizes) > 1:
            raise ValueError(
                f"augmentation must begin with RandomResizedCrop or name no size, as images differ in size: "
                f"{sorted(sizes)[:3]}, ..."
            )
        return torch.from_numpy(np.stack([np.asarray(image) for image in images]))

    def vary_images(self, pixels: torch.Tensor, seed: int) -> torch.Tensor:
        """What `cut` gave, varied by OpenCV and normalised: floats of shape (batch_size, 3, height, width)."""
        cv2.setNumThreads(0)  # there are as many workers as there are cores for them
        draws = self._draw(len(pixels), seed)
        mean, std = (np.array(values, dtype=np.float32) for values in self._statistics)
        tables = (((np.arange(256, dtype=np.float32) / 255)[:, None] - mean) / std).T  # (3, 256)
        result = np.empty((len(pixels), 3, *self.size), dtype=np.float32)
        for row, image in enumerate(pixels.numpy()):
            for step, (is_varied, drawn) in zip(self.steps, draws, strict=True):
                if is_varied[row]:
                    image = step.vary_image(image, drawn[row])
            for channel, values, table in zip(result[row], cv2.split(image), tables, strict=True):
                cv2.LUT(values, table, dst=channel)
        return torch.from_numpy(result)

    def vary_batch(self, pixels: torch.Tensor, seed: int) -> torch.Tensor:
        """What `cut` gave, on any device, varied by torch and normalised: (batch_size, 3, height, width) floats."""
        draws = self._draw(len(pixels), seed)
        pixels = pixels.permute(0, 3, 1, 2).contiguous().float() / 255
        for step, (is_varied, drawn) in zip(self.steps, draws, strict=True):
            if is_varied.all():
                pixels = step.vary_batch(pixels, drawn)
            elif is_varied.any():
                rows = torch.from_numpy(np.flatnonzero(is_varied)).to(pixels.device)
                pixels[rows] = step.vary_batch(pixels[rows], drawn[is_varied])
        mean, std = (pixels.new_tensor(values)[:, None, None] for values in self._statistics)
        return (pixels - mean) / std

    def _draw(self, number: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each step, which of `number` images it varies, and what it has drawn for each of them."""
        random = np.random.default_rng((seed, 1))  # not what `cut` draws from
        return [(random.random(number) < step.p, step.draw(number, random)) for step in self.steps]

    @property
    def _statistics(self) -> tuple[list[float], list[float]]:
        return self.image_processor.image_mean, self.image_processor.image_std

    def _to_rgb(self, image: Image.Image) -> Image.Image:
        if isinstance(image, Image.Image) and image.mode == "RGB":
            return image
        return Image.fromarray(self.image_processor.process_image(image, do_convert_rgb=True).transpose(1, 2, 0))


class RandomResizedCrop:
    """A part of the image of random area and shape, resized with PIL's antialiased bilinear filter.

    Args:
        size: height and width of the result, in pixels.
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width divided by height, drawn evenly on a logarithmic scale.
    """

    def __init__(self, size: list[int], scale: list[float] = (0.08, 1.0), ratio: list[float] = (3 / 4, 4 / 3)):
        if not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"scale must rise within (0, 1] and ratio above 0, got {scale} and {ratio}")
        height, width = size
        self.size, self.scale, self.ratio = (height, width), scale, ratio

    def __call__(self, image: Image.Image, random: np.random.Generator) -> Image.Image:
        box = self.draw_box(image.width, image.height, random)
        return image.resize(self.size[::-1], Image.Resampling.BILINEAR, box=box)

    def draw_box(self, width: int, height: int, random: np.random.Generator) -> tuple[float, float, float, float]:
        """Left, top, right and bottom, in pixels; the largest central part that fits if ten draws do not."""
        areas = random.uniform(*self.scale, size=10) * width * height
        ratios = np.exp(random.uniform(*np.log(self.ratio), size=10))
        left, top = random.uniform(size=2)
        widths, heights = np.sqrt(areas * ratios), np.sqrt(areas / ratios)
        fitting = np.flatnonzero((widths <= width) & (heights <= height))
        if len(fitting) > 0:
            box_width, box_height = widths[fitting[0]], heights[fitting[0]]
        else:
            ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
            box_width, box_height, left, top = min(width, height * ratio), min(height, width / ratio), 0.5, 0.5
        left, top = left * (width - box_width), top * (height - box_height)
        return left, top, min(left + box_width, width), min(top + box_height, height)


def _build(name: str, step_class: type, arguments: dict):
    try:
        return step_class(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"augmentation: {name} does not take {arguments!r}: {error}") from error
