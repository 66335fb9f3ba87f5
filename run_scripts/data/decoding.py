# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""The one way from an image's file to pixels, for training, evaluation, gallery, index, search and app alike."""

import io
from pathlib import Path

import fsspec
import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from modeling_fdt import FDTImageProcessor


# From here on Pillow warns of a decompression bomb, and raises at twice as many. Decoded to RGBA this is 358 MB.
MAX_PIXELS = 89_478_485
# No image of so many pixels needs a larger file, at 16 bits in each of four channels and with a second copy of it.
MAX_BYTES = 16 * MAX_PIXELS

# Of files that are taken for images; where a tar shard has several under one name, the first of these counts.
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "avif", "bmp", "gif", "tif", "tiff")

# What these hold is drawn by other programs, Ghostscript and Windows, where they are installed.
_DRAWN_BY_OTHERS = ("EPS", "WMF")
# 32 bits without a defined range: nothing says which value is white.
_MODES_WITHOUT_RANGE = ("I", "F")


class ImageError(ValueError):
    """An image that cannot be used; the message says why, after the path where there is one."""


def read_image_file(path: str | Path) -> bytes:
    """The bytes of an image's file.

    Args:
        path: on this machine, or an address that fsspec knows, such as `hf://` or `https://`.

    Raises:
        ImageError: the file cannot be read, is no regular file (a pipe would be waited for, and a device has no end)
            or has more than `MAX_BYTES`.
    """
    try:
        if "://" in str(path):
            with fsspec.open(str(path), "rb") as file:
                data = file.read(MAX_BYTES + 1)
            size = len(data)
        else:
            path = Path(path)
            if path.exists() and not path.is_file():
                raise ImageError(f"{path} is not a regular file")
            size = path.stat().st_size
            data = path.read_bytes() if size <= MAX_BYTES else b""
    except ImageError:
        raise
    except Exception as error:  # every file system has its own
        raise ImageError(f"{path} cannot be read: {_say(error)}") from error
    if size > MAX_BYTES:
        raise ImageError(f"{path} is larger than {MAX_BYTES:,} bytes")
    return data


def decode_image(value: bytes | str | Path | dict) -> Image.Image:
    """An image as its file holds it, upright; of an animation the first frame.

    Its mode is that of the file: transparency, palettes, CMYK and 16 bits become RGB in the model's image processor.

    Args:
        value: bytes, a path, or a dict of `bytes` or `path`, as `datasets` keeps images that it has not decoded.

    Raises:
        ImageError: the file cannot be read, is no image that Pillow decodes by itself, is damaged or truncated, has
            more than `MAX_PIXELS`, or a mode without a defined range.
    """
    if not isinstance(value, dict):
        value = {"bytes": value} if isinstance(value, bytes) else {"path": value}
    path, data = value.get("path"), value.get("bytes")
    if data is None:
        if path is None:
            raise ImageError("there is no image: neither bytes nor a path")
        data = read_image_file(path)
    try:
        return _decode(data)
    except ImageError as error:
        raise ImageError(f"{path} {error}" if path else str(error)) from error


def _decode(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data))
        _check(image)
        image.load()
        _check(image)  # icons and animations tell their true size and mode only now
        if image.getexif().get(ExifTags.Base.Orientation) is not None:
            image = ImageOps.exif_transpose(image)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("is not an image of a known format") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"has more than {MAX_PIXELS:,} pixels") from error
    except Exception as error:  # the decoder of every format has its own, down to IndexError and MemoryError
        raise ImageError(f"cannot be decoded: {_say(error)}") from error
    return image


def _check(image: Image.Image) -> None:
    if image.format in _DRAWN_BY_OTHERS:
        raise ImageError(f"is a drawing, not pixels: {image.format}")
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"has more than {MAX_PIXELS:,} pixels: {image.width} x {image.height}")
    if image.width * image.height == 0:
        raise ImageError(f"has no pixels: {image.width} x {image.height}")
    if image.mode in _MODES_WITHOUT_RANGE:
        raise ImageError(f"has values without a defined range, of mode {image.mode!r}; 8 and 16 bits have one")


def _say(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def to_rgb(image: Image.Image) -> Image.Image:
    """The image as FDT's image processor makes it RGB: upright, transparency on white, 16 bits scaled to 8."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return ImageOps.exif_transpose(image)
    pixels = FDTImageProcessor().process_image(image, do_convert_rgb=True)
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def decode_rows(rows: dict[str, list]) -> dict[str, list]:
    """Columns of rows, with the column `image` decoded.

    Raises:
        ImageError: an image is missing or cannot be decoded.
    """
    return {name: [*map(decode_image, values)] if name == "image" else values for name, values in rows.items()}
