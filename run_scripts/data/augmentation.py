# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""How images are varied in training: a crop for each image by PIL, everything after it for the batch by kornia."""

import kornia.augmentation
import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import BaseImageProcessor


class Augmentation:
    """Cuts images to one size and varies them.

    A `RandomResizedCrop` that comes first is done image by image by PIL, which computes no pixel outside the crop
    and takes images of any size. Where no step names a size, the image processor resizes and crops before the first
    step, as in evaluation. All other steps are kornia's and see the whole batch, on whatever device it is.

    Args:
        steps: classes of kornia.augmentation in their order, each with its arguments; they see RGB in [0, 1] and must
            end in the image processor's crop size. `RandomResizedCrop` may come first, with `size`, `scale`, `ratio`.
        image_processor: gives size, mean and standard deviation.

    Raises:
        ValueError: a name is no class of kornia.augmentation, or arguments are not its own.
    """

    def __init__(self, steps: dict[str, dict], image_processor: BaseImageProcessor):
        steps = dict(steps)
        self.image_processor = image_processor
        self.size = (image_processor.crop_size["height"], image_processor.crop_size["width"])
        self.crop = None
        self.has_size = any("size" in arguments for arguments in steps.values())
        if next(iter(steps), None) == "RandomResizedCrop":
            self.crop = _build("RandomResizedCrop", RandomResizedCrop, steps.pop("RandomResizedCrop"))
        self.steps = build_kornia_steps(steps)

    def cut(self, images: list[Image.Image], seed: int) -> torch.Tensor:
        """Images as bytes of shape (batch_size, 3, height, width), as they are before the steps of kornia.

        Raises:
            ValueError: nothing brings images of several sizes to one.
        """
        if not self.has_size:
            options = {"do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
            return self.image_processor(images, **options)["pixel_values"]
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
        return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).contiguous()

    def vary(self, pixels: torch.Tensor, seed: int) -> torch.Tensor:
        """What `cut` gave, on any device, varied and normalised: (batch_size, 3, height, width) floats.

        Raises:
            ValueError: the images do not end in the image processor's crop size.
        """
        # kornia draws on the CPU, so the same seed varies a batch in the same way on every device.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            pixels = self.steps(pixels.float() / 255)
        if tuple(pixels.shape[2:]) != self.size:
            raise ValueError(f"augmentation must end in images of {self.size}, got {tuple(pixels.shape[2:])}")
        statistics = (self.image_processor.image_mean, self.image_processor.image_std)
        mean, std = (pixels.new_tensor(values)[:, None, None] for values in statistics)
        return (pixels - mean) / std

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
        (self.height, self.width), self.scale, self.ratio = size, scale, ratio

    def __call__(self, image: Image.Image, random: np.random.Generator) -> Image.Image:
        box = self.draw_box(image.width, image.height, random)
        return image.resize((self.width, self.height), Image.Resampling.BILINEAR, box=box)

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


def build_kornia_steps(steps: dict[str, dict]) -> nn.Module:
    """The named classes of kornia.augmentation, one after the other."""
    for name in steps:
        if not isinstance(getattr(kornia.augmentation, name, None), type):
            raise ValueError(f"augmentation names {name!r}, which is no class of kornia.augmentation")
    modules = [_build(name, getattr(kornia.augmentation, name), arguments) for name, arguments in steps.items()]
    return kornia.augmentation.AugmentationSequential(*modules) if modules else nn.Identity()


def _build(name: str, step_class: type, arguments: dict):
    try:
        return step_class(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"augmentation: {name} does not take {arguments!r}: {error}") from error
