# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""What lies behind a scene: light colours, plain and in simple patterns."""

import colorsys

import numpy as np


NUM_BACKGROUNDS = 256


def draw_backgrounds(size: int, seed: int) -> np.ndarray:
    """Backgrounds of shape (NUM_BACKGROUNDS, size, size, 3), as bytes; the same for the same seed."""
    random = np.random.default_rng((seed, 1))
    patterns = (_plain, _gradient, _ground, _stripes, _dots)
    return np.stack([patterns[i % len(patterns)](size, random) for i in range(NUM_BACKGROUNDS)]).astype(np.uint8)


def _color(random: np.random.Generator, hue: float | None = None) -> np.ndarray:
    """A light colour."""
    hue = random.random() if hue is None else hue
    return 255 * np.array(colorsys.hsv_to_rgb(hue % 1, random.uniform(0.04, 0.3), random.uniform(0.88, 1.0)))


def _plain(size: int, random: np.random.Generator) -> np.ndarray:
    return np.broadcast_to(_color(random), (size, size, 3))


def _gradient(size: int, random: np.random.Generator) -> np.ndarray:
    share = np.linspace(0, 1, size)[:, None, None]
    image = np.broadcast_to((1 - share) * _color(random) + share * _color(random), (size, size, 3))
    return image if random.random() < 0.5 else image.transpose(1, 0, 2)


def _ground(size: int, random: np.random.Generator) -> np.ndarray:
    image = np.empty((size, size, 3))
    horizon = round(size * random.uniform(0.45, 0.8))
    image[:horizon] = _color(random, random.uniform(0.5, 0.62))
    image[horizon:] = _color(random, random.uniform(0.1, 0.4))
    return image


def _stripes(size: int, random: np.random.Generator) -> np.ndarray:
    hue = random.random()
    is_first = (np.arange(size) // max(round(size * random.uniform(0.05, 0.15)), 1) % 2 == 0)[:, None, None]
    image = np.broadcast_to(np.where(is_first, _color(random, hue), _color(random, hue)), (size, size, 3))
    return image if random.random() < 0.5 else image.transpose(1, 0, 2)


def _dots(size: int, random: np.random.Generator) -> np.ndarray:
    hue, step = random.random(), size * random.uniform(0.1, 0.2)
    place = (np.arange(size) + random.uniform(0, step)) % step - step / 2
    is_dot = (place[:, None] ** 2 + place**2 < (0.25 * step) ** 2)[..., None]
    return np.where(is_dot, _color(random, hue), _color(random, hue + 0.03))
