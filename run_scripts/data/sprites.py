# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Drawings cut out, recoloured and scaled once, ready to be laid on a scene."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from PIL import Image

from run_scripts.data.scene_vocabulary import COLORS, Subject


# Pixels of a hue, in degrees, this near to the most frequent one are recoloured together.
_HUE_REACH = 30
# The share of a drawing that must be of one hue for it to have a colour, and to be given another.
_MIN_COLORED_SHARE = 0.5
# From which hue to which, and the least saturation and value, a drawing has the colour that captions name.
_NATIVE_COLORS = {
    "red": (345, 372, 0.6, 0.6),
    "yellow": (40, 60, 0.5, 0.8),
    "green": (80, 165, 0.4, 0.3),
    "blue": (195, 235, 0.45, 0.5),
    "purple": (255, 290, 0.35, 0.4),
}


@dataclass
class Sprite:
    """One drawing.

    Args:
        subject: what it shows.
        style: whose drawing it is.
        pixels: RGBA of shape (height, width, 4), as bytes, without margins.
        color: the colour that captions may name, where it has one on its own.
        is_recolorable: whether most of it is of one hue, which can be replaced.
    """

    subject: Subject
    style: str
    pixels: np.ndarray
    color: str | None
    is_recolorable: bool
    _cuts: dict[tuple[int, str | None], "Cut"] = field(default_factory=dict, repr=False)
    _recolored: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def cut(self, side: int, color: str | None) -> "Cut":
        """The drawing, `side` pixels high or wide and no more, in its own colours or in that of `color`; kept."""
        key = side, color
        if key not in self._cuts:
            if color is not None and color not in self._recolored:
                self._recolored[color] = recolor(self.pixels, *self._colored_region, color)
            self._cuts[key] = Cut.scale(self.pixels if color is None else self._recolored[color], side)
        return self._cuts[key]

    @cached_property
    def _colored_region(self) -> tuple[np.ndarray, tuple[float, float, float]]:
        return find_colored_region(self.pixels)


@dataclass
class Cut:
    """Pixels of a sprite in the form in which they are laid on an image.

    Args:
        colors: RGB times opacity, of shape (height, width, 3), as bytes.
        transparency: of shape (height, width, 1), as bytes.
        is_opaque: of shape (height, width): where at least half of what is seen is the sprite.
    """

    colors: np.ndarray
    transparency: np.ndarray
    is_opaque: np.ndarray
    num_opaque: int

    @classmethod
    def scale(cls, pixels: np.ndarray, side: int) -> "Cut":
        height, width = pixels.shape[:2]
        ratio = side / max(height, width)
        size = max(round(width * ratio), 1), max(round(height * ratio), 1)
        # Multiplied by opacity before it is scaled: what is transparent has no colour that could bleed.
        scaled = Image.fromarray(pixels).convert("RGBa").resize(size, Image.Resampling.HAMMING)
        colors, alpha = np.split(np.asarray(scaled), [3], axis=-1)
        is_opaque = alpha[..., 0] >= 128
        return cls(np.minimum(colors, alpha), 255 - alpha, is_opaque, int(is_opaque.sum()))

    def mirror(self) -> "Cut":
        """The same from right to left; no pixel is copied."""
        return Cut(self.colors[:, ::-1], self.transparency[:, ::-1], self.is_opaque[:, ::-1], self.num_opaque)

    def lay_on(self, canvas: np.ndarray, left: int, top: int) -> None:
        """Paint over an RGB image of bytes."""
        height, width = self.is_opaque.shape
        region = canvas[top : top + height, left : left + width]
        # 255 is added so that what is wholly transparent leaves every value as it is.
        below = np.multiply(region, self.transparency, dtype=np.uint16)
        below += 255
        below >>= 8
        np.add(below, self.colors, out=region, casting="unsafe")


def make_sprite(image: Image.Image, subject: Subject, style: str) -> Sprite:
    """A sprite of an RGBA image, with its colour measured."""
    pixels = np.asarray(image.convert("RGBA"))
    color, is_recolorable = None, False
    if subject.category not in ("people", "distractors"):
        is_opaque = pixels[..., 3] >= 128
        region, (hue, saturation, value) = find_colored_region(pixels)
        is_recolorable = bool(region.sum() >= _MIN_COLORED_SHARE * is_opaque.sum())
        if is_recolorable:
            color = name_color(hue, saturation, value)
    return Sprite(subject, style, pixels, color, is_recolorable)


def find_colored_region(pixels: np.ndarray) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Where an RGBA image is of its most frequent hue, and the median hue, saturation and value there."""
    hsv = _convert(pixels[..., :3], "RGB", "HSV").astype(np.float32) / 255
    hue, saturation, value = hsv[..., 0] * 360, hsv[..., 1], hsv[..., 2]
    is_colored = (pixels[..., 3] >= 128) & (saturation > 0.25) & (value > 0.25)
    counts = np.bincount((hue[is_colored] / 10).astype(int) % 36, minlength=36)
    peak = 10 * np.argmax(counts + np.roll(counts, 1) + np.roll(counts, -1)) + 5
    offset = (hue - peak + 180) % 360 - 180
    region = is_colored & (np.abs(offset) <= _HUE_REACH)
    if not region.any():
        return region, (0.0, 0.0, 0.0)
    return region, ((peak + np.median(offset[region])) % 360, np.median(saturation[region]), np.median(value[region]))


def name_color(hue: float, saturation: float, value: float) -> str | None:
    """The colour that captions name, for a hue in degrees; None for all that lies between those colours."""
    for name, (start, end, least_saturation, least_value) in _NATIVE_COLORS.items():
        if (hue - start) % 360 <= end - start and saturation >= least_saturation and value >= least_value:
            return name
    return None


def recolor(pixels: np.ndarray, region: np.ndarray, medians: tuple[float, float, float], color: str) -> np.ndarray:
    """RGBA with another hue in a region; light and shade stay.

    Args:
        pixels: RGBA of bytes.
        region, medians: what `find_colored_region` gives for it.
        color: one of COLORS.
    """
    _, median_saturation, median_value = medians
    hue, saturation, value = COLORS[color]
    hsv = _convert(pixels[region][None, :, :3], "RGB", "HSV").astype(np.float32)  # (1, num_pixels, 3)
    hsv[..., 0] = hue / 360 * 255
    hsv[..., 1:] *= np.array([saturation / median_saturation, value / median_value], np.float32)
    pixels = pixels.copy()
    pixels[region, :3] = _convert(hsv.clip(0, 255).round().astype(np.uint8), "HSV", "RGB")[0]
    return pixels


def _convert(pixels: np.ndarray, source: str, target: str) -> np.ndarray:
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels), mode=source).convert(target))
