# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""The steps that vary images. Each is drawn once and can be done in two ways: image by image, or for a whole batch.

Workers do a step with OpenCV on an image's bytes, (height, width, 3), and round to bytes after every operation, as
torchvision does with PIL's images. The training device does it with torch on a batch of floats in [0, 1], (batch_size,
3, height, width), and rounds nowhere. Steps that torchvision has, too, are defined as there.
"""

import math

import cv2
import numpy as np
import torch
from PIL import Image
from torch import nn


# Weights of red, green and blue in brightness: ITU-R 601-2, as in PIL and OpenCV.
_LUMA = (0.299, 0.587, 0.114)


class Step:
    """One way to vary images.

    Args:
        p: probability that an image is varied, from 0 to 1.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, p: float):
        _check_range("p", p, 0, 1)
        self.p = p

    def draw(self, number: int, random: np.random.Generator) -> np.ndarray:
        """What decides how each of `number` images is varied: one row per image."""
        return np.empty((number, 0))

    def vary_image(self, image: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """The bytes of one image, varied as its row of `draw` says; `image` itself is left as it is."""
        raise NotImplementedError

    def vary_batch(self, pixels: torch.Tensor, drawn: np.ndarray) -> torch.Tensor:
        """The floats of a batch, varied as the rows of `draw` say; `pixels` itself is left as it is."""
        raise NotImplementedError


class ColorJitter(Step):
    """Changes brightness, contrast, saturation and hue, in an order drawn for each image.

    Args:
        brightness: the factor is drawn from [1 - brightness, 1 + brightness], and is never below 0.
        contrast: likewise for the distance of each pixel from the image's mean brightness.
        saturation: likewise for the distance of each pixel from its own brightness.
        hue: the shift is drawn from [-hue, hue], in turns of the colour circle, and is at most 0.5.
    """

    def __init__(
        self,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
        p: float = 1.0,
    ):
        super().__init__(p)
        self.ranges = {}
        for name, value in {"brightness": brightness, "contrast": contrast, "saturation": saturation}.items():
            _check_range(name, value, 0, math.inf)
            if value > 0:
                self.ranges[name] = (max(0.0, 1 - value), 1 + value)
        _check_range("hue", hue, 0, 0.5)
        if hue > 0:
            self.ranges["hue"] = (-hue, hue)

    def draw(self, number: int, random: np.random.Generator) -> np.ndarray:
        count = len(self.ranges)
        low, high = np.reshape([*self.ranges.values()], (count, 2)).T
        order = random.permuted(np.tile(np.arange(count), (number, 1)), axis=1)
        return np.concatenate([random.uniform(low, high, (number, count)), order], axis=1)

    def vary_image(self, image: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        names = [*self.ranges]
        for column in drawn[len(names) :].astype(int):
            change_image, _ = _CHANGES[names[column]]
            image = change_image(image, drawn[column])
        return image

    def vary_batch(self, pixels: torch.Tensor, drawn: np.ndarray) -> torch.Tensor:
        pixels, count = pixels.clone(), len(self.ranges)
        for turn in drawn[:, count:].T:
            for column, name in enumerate(self.ranges):
                rows = np.flatnonzero(turn == column)  # images that have this change now
                if len(rows) > 0:
                    _, change_batch = _CHANGES[name]
                    factors = _to_tensor(drawn[rows, column], pixels)[:, None, None, None]
                    rows = torch.from_numpy(rows).to(pixels.device)
                    pixels[rows] = change_batch(pixels[rows], factors)
        return pixels


def _brighten_image(image: np.ndarray, factor: float) -> np.ndarray:
    return _scale_from(0, image, factor)


def _brighten_batch(pixels: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    return (pixels * factors).clamp(0, 1)


def _contrast_image(image: np.ndarray, factor: float) -> np.ndarray:
    return _scale_from(cv2.mean(_to_gray_image(image))[0], image, factor)


def _contrast_batch(pixels: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    means = _to_gray_batch(pixels).mean(dim=(1, 2, 3), keepdim=True)
    return (means + (pixels - means) * factors).clamp(0, 1)


def _saturate_image(image: np.ndarray, factor: float) -> np.ndarray:
    gray = cv2.cvtColor(_to_gray_image(image), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(image, factor, gray, 1 - factor, 0)


def _saturate_batch(pixels: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    gray = _to_gray_batch(pixels)
    return (gray + (pixels - gray) * factors).clamp(0, 1)


def _shift_hue_image(image: np.ndarray, shift: float) -> np.ndarray:
    # In floats: it takes no longer, and 256 hues would be up to 10 of 255 off in a strong colour.
    hsv = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2HSV)
    hsv = cv2.add(hsv, (360 * (shift % 1), 0, 0, 0))  # OpenCV takes off what is beyond a turn, but adds none
    return cv2.convertScaleAbs(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))


def _shift_hue_batch(pixels: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    red, green, blue = pixels.split(1, dim=1)
    value = pixels.amax(dim=1, keepdim=True)
    chroma = value - pixels.amin(dim=1, keepdim=True)
    divisor = chroma.masked_fill(chroma == 0, 1)
    from_others = torch.where(green == value, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)
    hue = torch.where(red == value, (green - blue) / divisor, from_others) + 6 * shifts  # in sixths of a turn
    position = (hue + pixels.new_tensor([5, 3, 1])[:, None, None]) % 6
    return value - chroma * torch.minimum(position, 4 - position).clamp(0, 1)


def _scale_from(origin: float, image: np.ndarray, factor: float) -> np.ndarray:
    values = origin + (np.arange(256) - origin) * factor
    return cv2.LUT(image, np.clip(np.rint(values), 0, 255).astype(np.uint8))


def _to_gray_image(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def _to_gray_batch(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels * pixels.new_tensor(_LUMA)[:, None, None]).sum(dim=1, keepdim=True)


_CHANGES = {
    "brightness": (_brighten_image, _brighten_batch),
    "contrast": (_contrast_image, _contrast_batch),
    "saturation": (_saturate_image, _saturate_batch),
    "hue": (_shift_hue_image, _shift_hue_batch),
}


class RandomGrayscale(Step):
    """Leaves the brightness alone, in three equal channels."""

    def __init__(self, p: float = 0.1):
        super().__init__(p)

    def vary_image(self, image: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        return cv2.cvtColor(_to_gray_image(image), cv2.COLOR_GRAY2RGB)

    def vary_batch(self, pixels: torch.Tensor, drawn: np.ndarray) -> torch.Tensor:
        return _to_gray_batch(pixels).expand_as(pixels)


class RandomGaussianBlur(Step):
    """Blurs with a Gaussian that ends at three standard deviations; the image is mirrored at its edges.

    Args:
        sigma: smallest and largest standard deviation, in pixels.
    """

    def __init__(self, sigma: list[float], p: float = 0.5):
        super().__init__(p)
        _check_interval("sigma", sigma)
        self.sigma = sigma

    def draw(self, number: int, random: np.random.Generator) -> np.ndarray:
        return random.uniform(*self.sigma, (number, 1))

    @staticmethod
    def compute_weights(sigma: np.ndarray) -> np.ndarray:
        """Weights of neighbours along one axis, (number, 2 * radius + 1), for standard deviations (number, 1)."""
        radius = np.ceil(3 * sigma)
        offsets = np.abs(np.arange(-radius.max(), radius.max() + 1))
        weights = np.exp(-0.5 * (offsets / sigma) ** 2) * (offsets <= radius)
        return weights / weights.sum(axis=1, keepdims=True)

    def vary_image(self, image: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        (weights,) = self.compute_weights(drawn[None])
        # Twice as fast as GaussianBlur, whose weights for bytes are multiples of 1/256.
        return cv2.sepFilter2D(image, -1, weights, weights, borderType=cv2.BORDER_REFLECT_101)

    def vary_batch(self, pixels: torch.Tensor, drawn: np.ndarray) -> torch.Tensor:
        weights = _to_tensor(self.compute_weights(drawn), pixels).repeat_interleave(3, dim=0)
        channels, size = pixels.flatten(0, 1)[None], weights.shape[1]  # (1, batch_size * 3, height, width)
        channels = nn.functional.pad(channels, [size // 2] * 4, mode="reflect")
        for shape in [(-1, 1, 1, size), (-1, 1, size, 1)]:
            channels = nn.functional.conv2d(channels, weights.view(shape), groups=len(weights))
        return channels.view_as(pixels)


class RandomHorizontalFlip(Step):
    """Mirrors left and right."""

    def __init__(self, p: float = 0.5):
        super().__init__(p)

    def vary_image(self, image: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        return cv2.flip(image, 1)

    def vary_batch(self, pixels: torch.Tensor, drawn: np.ndarray) -> torch.Tensor:
        return pixels.flip(-1)


class RandomAffine(Step):
    """Shears, rotates, scales and moves the image about its centre, bilinearly; its border goes on beyond its edges.

    Args:
        degrees: the angle is drawn from [-degrees, degrees].
        translate: largest shift to either side, as a share of the width and of the height.
        scale: smallest and largest factor.
        shear: by how many degrees verticals are tilted is drawn from [-shear, shear].
    """

    def __init__(
        self,
        degrees: float,
        translate: list[float] = (0.0, 0.0),
        scale: list[float] = (1.0, 1.0),
        shear: float = 0.0,
        p: float = 1.0,
    ):
        super().__init__(p)
        _check_range("degrees", degrees, 0, 180)
        _check_range("shear", shear, 0, 80)
        for share in translate:
            _check_range("translate", share, 0, 1)
        _check_interval("scale", scale)
        (right, down), (smallest, largest) = translate, scale
        self.low = [-degrees, -right, -down, smallest, -shear]
        self.high = [degrees, right, down, largest, shear]

    def draw(self, number: int, random: np.random.Generator) -> np.ndarray:
        return random.uniform(self.low, self.high, (number, len(self.low)))

    @staticmethod
    def compute_sources(drawn: np.ndarray, height: int, width: int) -> np.ndarray:
        """Where each pixel of the result comes from: matrices (number, 2, 3) that take its x, y and 1 to x and y."""
        angle, shear, zeros = np.radians(drawn[:, 0]), np.radians(drawn[:, 4]), np.zeros(len(drawn))
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        shearing = np.array([[zeros + 1, np.tan(shear)], [zeros, zeros + 1]])
        inverse = np.linalg.inv(np.einsum("ijn,jkn->nik", rotation, shearing) * drawn[:, 3, None, None])
        center = np.array([width - 1, height - 1]) / 2
        moved = center + drawn[:, 1:3] * (width, height)
        return np.concatenate([inverse, center[:, None] - inverse @ moved[:, :, None]], axis=2)

    def vary_image(self, image: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        (sources,) = self.compute_sources(drawn[None], height, width)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(image, sources, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)

    def vary_batch(self, pixels: torch.Tensor, drawn: np.ndarray) -> torch.Tensor:
        height, width = pixels.shape[2:]
        y, x = np.indices((height, width)).reshape(2, -1)
        targets = _to_tensor(np.stack([x, y, np.ones_like(x)]), pixels)
        sources = _to_tensor(self.compute_sources(drawn, height, width), pixels) @ targets
        size = pixels.new_tensor([width, height])[:, None]
        grid = (2 * sources + 1) / size - 1  # the image's edges are at -1 and 1
        grid = grid.mT.unflatten(1, (height, width))
        return nn.functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


class Resize(Step):
    """Resizes every image with an antialiased bilinear filter.

    Args:
        size: height and width of the result, in pixels.
    """

    def __init__(self, size: list[int]):
        super().__init__(p=1.0)
        height, width = size
        self.size = (height, width)

    def vary_image(self, image: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(image).resize(self.size[::-1], Image.Resampling.BILINEAR))

    def vary_batch(self, pixels: torch.Tensor, drawn: np.ndarray) -> torch.Tensor:
        return nn.functional.interpolate(pixels, self.size, mode="bilinear", antialias=True)


class RandomRGBShift(Step):
    """Adds a value to each channel.

    Args:
        r_shift_limit: the value for red is drawn from [-r_shift_limit, r_shift_limit], where 1 is the whole range.
        g_shift_limit: likewise for green.
        b_shift_limit: likewise for blue.
    """

    def __init__(self, r_shift_limit: float, g_shift_limit: float, b_shift_limit: float, p: float = 0.5):
        super().__init__(p)
        self.limits = np.array([r_shift_limit, g_shift_limit, b_shift_limit])
        for name, limit in zip("rgb", self.limits, strict=True):
            _check_range(f"{name}_shift_limit", limit, 0, 1)

    def draw(self, number: int, random: np.random.Generator) -> np.ndarray:
        return random.uniform(-self.limits, self.limits, (number, 3))

    def vary_image(self, image: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        return _add_to_image(image, drawn)

    def vary_batch(self, pixels: torch.Tensor, drawn: np.ndarray) -> torch.Tensor:
        return (pixels + _to_tensor(drawn, pixels)[:, :, None, None]).clamp(0, 1)


class RandomGaussianNoise(Step):
    """Adds independent values to all pixels and channels.

    Args:
        std: standard deviation of the values, where 1 is the whole range.
    """

    def __init__(self, std: float, p: float = 0.5):
        super().__init__(p)
        _check_range("std", std, 0, math.inf)
        self.std = std

    def draw(self, number: int, random: np.random.Generator) -> np.ndarray:
        return random.integers(2**32, size=(number, 1))  # seeds, as the images' size is not known here

    def generate(self, seed: int, shape: tuple[int, ...]) -> np.ndarray:
        return self.std * np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)

    def vary_image(self, image: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        return _add_to_image(image, self.generate(drawn[0], image.shape))

    def vary_batch(self, pixels: torch.Tensor, drawn: np.ndarray) -> torch.Tensor:
        _, channels, height, width = pixels.shape
        noise = np.stack([self.generate(seed, (height, width, channels)) for (seed,) in drawn])
        return (pixels + _to_tensor(noise, pixels).permute(0, 3, 1, 2)).clamp(0, 1)


def _add_to_image(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values where 1 is the whole range."""
    return np.clip(np.rint(image + 255 * values), 0, 255).astype(np.uint8)


STEPS: dict[str, type[Step]] = {
    step.__name__: step
    for step in (
        *(ColorJitter, RandomAffine, RandomGaussianBlur, RandomGaussianNoise, RandomGrayscale),
        *(RandomHorizontalFlip, RandomRGBShift, Resize),
    )
}


def _to_tensor(values: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(like)


def _check_range(name: str, value: float, least: float, largest: float) -> None:
    if not least <= value <= largest:
        raise ValueError(f"{name} must be from {least} to {largest}, got {value}")


def _check_interval(name: str, interval: list[float]) -> None:
    low, high = interval
    if not 0 < low <= high:
        raise ValueError(f"{name} must be two numbers above 0, the smaller first, got {interval}")
