# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Image processor of FDT models."""

import math
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ImageInput,
    PILImageResampling,
    SizeDict,
)


class FDTImageProcessor(PilBackend):
    r"""
    Turns images into normalised pixels as the original's evaluation does: the short side to 256 by bilinear
    interpolation, the central 224 x 224, ImageNet's mean and standard deviation. It needs PIL alone, and equals
    torchvision's `Resize(256)`, `CenterCrop(224)`, `ToTensor`, `Normalize` on PIL images.

    Images of any mode are accepted: an EXIF orientation is applied, transparency is laid on white, palettes and CMYK
    become RGB, and 16-bit grey is scaled to 8 bits. An image smaller than the crop is resized up, or, with
    `do_resize=False`, padded with black as torchvision does. Arrays have 1, 3 or 4 channels; of floating-point arrays
    pass `do_rescale=False` if they lie in [0, 1] already.

    Args:
        size (`dict`, defaults to `{"shortest_edge": 256}`): the size after resizing, in pixels.
        crop_size (`dict`, defaults to `{"height": 224, "width": 224}`): the size of the central crop, in pixels.
        kwargs: any other option of transformers' image processors (`do_resize`, `resample`, `do_center_crop`,
            `do_rescale`, `rescale_factor`, `do_normalize`, `image_mean`, `image_std`, `do_convert_rgb`).

    Returns (when called):
        `BatchFeature` with `pixel_values` of shape `(batch_size, 3, height, width)`.

    Raises:
        ValueError: an image cannot be decoded, has a mode or number of channels that cannot become RGB, or holds
            values that are not finite.
        TypeError: an option has an unknown name. A file that `save_pretrained` wrote may carry further options, since
            another release may have written it.

    Source: yuxiaochen1103/FDT at commit ccf6983, evaluation transforms.
    """

    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 256}
    default_to_square = False
    crop_size = {"height": 224, "width": 224}
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    def __init__(self, **kwargs):
        unknown = set(kwargs) - set(self.valid_kwargs.__annotations__)
        # What save_pretrained wrote names its class, and another release may have written it.
        if unknown and "image_processor_type" not in kwargs:
            raise TypeError(
                f"FDTImageProcessor has no option {sorted(unknown)}; its options are "
                f"{sorted(self.valid_kwargs.__annotations__)}."
            )
        super().__init__(**kwargs)

    def process_image(self, image: ImageInput, do_convert_rgb: bool | None = None, **kwargs) -> np.ndarray:
        """One image as an array of shape (channels, height, width)."""
        if isinstance(image, Image.Image):
            image = _upright_8_bit(image)
            if do_convert_rgb and image.has_transparency_data:  # not all releases of transformers lay it on white
                background = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(background, image.convert("RGBA")).convert("RGB")
        image = super().process_image(image, do_convert_rgb=do_convert_rgb, **kwargs)
        if do_convert_rgb and image.shape[0] == 1:
            image = np.repeat(image, 3, axis=0)
        if do_convert_rgb and image.shape[0] != 3:
            raise ValueError(f"an image must have 1, 3 or 4 channels, got an array of shape {image.shape}.")
        if not np.isfinite(image).all():
            raise ValueError("an image holds values that are not finite (NaN or infinity).")
        return image

    def _preprocess(
        self,
        images: list[np.ndarray],
        do_resize: bool,
        size: SizeDict,
        resample: PILImageResampling | None,
        do_center_crop: bool,
        crop_size: SizeDict,
        **kwargs,
    ) -> BatchFeature:
        # transformers resizes all of an image before it crops: one of 1 x 4,000 pixels to 256 x 1,024,000. It has no
        # public place that knows both sizes; this hook is the one of its own image processors, and
        # test_of_a_very_long_image_only_the_seen_part_is_resized fails if it is not called.
        if do_resize and do_center_crop:
            images = [
                self.center_crop(
                    _resize_seen_part(image, size.shortest_edge, crop_size, resample)
                    if _is_long(image, size)
                    else self.resize(image, size, resample),
                    crop_size,
                )
                for image in images
            ]
            do_resize = do_center_crop = False
        options = {"size": size, "resample": resample, "crop_size": crop_size, **kwargs}
        return super()._preprocess(images, do_resize=do_resize, do_center_crop=do_center_crop, **options)

    def center_crop(self, image: np.ndarray, size: SizeDict, **kwargs) -> np.ndarray:
        """The central part; torchvision rounds its corner half to even where transformers rounds it down."""
        height, width = image.shape[1:]
        # An image smaller than the crop is padded with black, the odd pixel at the bottom and right.
        missing_height, missing_width = max(size.height - height, 0), max(size.width - width, 0)
        top, left = missing_height // 2, missing_width // 2
        image = np.pad(image, ((0, 0), (top, missing_height - top), (left, missing_width - left)))
        height, width = image.shape[1:]
        top, left = round((height - size.height) / 2), round((width - size.width) / 2)
        return image[:, top : top + size.height, left : left + size.width]


# By timm's names.
_RESAMPLE = {"bilinear": PILImageResampling.BILINEAR, "bicubic": PILImageResampling.BICUBIC}


def build_timm_image_processor(data_config: dict[str, Any]) -> FDTImageProcessor:
    r"""
    The evaluation transform of a timm checkpoint: transformers' own image processor for timm needs torchvision, and is
    not saved with a model.

    Args:
        data_config (`dict`): `pretrained_cfg` of the checkpoint's config.json.

    Returns:
        [`FDTImageProcessor`]

    Raises:
        ValueError: the transform is another than a resized image's central square of RGB.
    """
    channels, height, width = data_config["input_size"]
    interpolation, crop_mode = data_config.get("interpolation", "bicubic"), data_config.get("crop_mode") or "center"
    if channels != 3 or height != width or interpolation not in _RESAMPLE or crop_mode != "center":
        raise ValueError(
            "the `pretrained_cfg` of a timm checkpoint must have input_size [3, n, n], interpolation among "
            f"{list(_RESAMPLE)} and crop_mode 'center', got {data_config['input_size']}, {interpolation!r} and "
            f"{crop_mode!r}"
        )
    return FDTImageProcessor(
        size={"shortest_edge": math.floor(height / data_config.get("crop_pct", 0.875))},
        crop_size={"height": height, "width": width},
        resample=_RESAMPLE[interpolation],
        image_mean=list(data_config["mean"]),
        image_std=list(data_config["std"]),
    )


# The longest side, in pixels, to which a whole image is resized where only its centre is seen: 256 x 32,768 pixels
# take 100 MB. Beyond, some values differ by one of 255 from those of the whole, since PIL rounds the part's edges.
_LONGEST_RESIZED_SIDE = 32_768


def _is_long(image: np.ndarray, size: SizeDict) -> bool:
    if not size.shortest_edge or size.longest_edge or image.dtype != np.uint8 or len(image) != 3:
        return False
    return size.shortest_edge * max(image.shape[1:]) / min(image.shape[1:]) > _LONGEST_RESIZED_SIDE


def _resize_seen_part(
    image: np.ndarray, shortest_edge: int, crop_size: SizeDict, resample: PILImageResampling | None
) -> np.ndarray:
    """Of a long image, resized, what a central crop leaves of its long side."""
    axis = int(np.argmax(image.shape[1:]))
    long, short = image.shape[1 + axis], image.shape[2 - axis]
    crop = (crop_size.height, crop_size.width)[axis]
    resized = int(shortest_edge * long / short)
    start = round((resized - crop) / 2)
    first, last = start * long / resized, (start + crop) * long / resized
    # Pixels up to three (Lanczos) of the coarser grid away take part. The image is cut at whole pixels, well outside:
    # PIL keeps the box in float32, which is exact enough for the small numbers that are left.
    margin = math.ceil(3 * max(long / resized, 1)) + 1
    cut = max(int(first) - margin, 0)
    pixels = Image.fromarray(image.take(range(cut, min(int(last) + margin, long)), axis=1 + axis).transpose(1, 2, 0))
    first, last = first - cut, last - cut
    box = (first, 0, last, short) if axis else (0, first, short, last)
    pixels = pixels.resize((crop, shortest_edge) if axis else (shortest_edge, crop), resample, box=box)
    return np.asarray(pixels).transpose(2, 0, 1)


def _upright_8_bit(image: Image.Image) -> Image.Image:
    try:
        image = ImageOps.exif_transpose(image)
        image.load()
    except (OSError, SyntaxError) as error:
        name = getattr(image, "filename", "") or "(without a name)"
        raise ValueError(f"image {name} cannot be decoded: {error}") from error
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"an image of mode {image.mode!r} has no defined range; pass 8-bit or 16-bit values.")
    return image


# What is saved brings this code along.
FDTImageProcessor.register_for_auto_class()

__all__ = ["FDTImageProcessor"]
