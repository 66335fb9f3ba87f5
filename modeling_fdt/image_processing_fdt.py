# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Image processor of FDT models."""

import numpy as np
from PIL import Image, ImageOps
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
    Turns pictures into normalised pixels as the original's evaluation does: the short side to 256 by bilinear
    interpolation, the central 224 x 224, ImageNet's mean and standard deviation. It needs PIL alone, and equals
    torchvision's `Resize(256)`, `CenterCrop(224)`, `ToTensor`, `Normalize` on PIL images.

    Pictures of any mode are accepted: an EXIF orientation is applied, transparency is laid on white, palettes and CMYK
    become RGB, and 16-bit grey is scaled to 8 bits. A picture smaller than the crop is resized up, or, with
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
        ValueError: a picture cannot be decoded, has a mode or number of channels that cannot become RGB, or holds
            values that are not finite.
        TypeError: an option has an unknown name.

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
        saved = {"auto_map", "image_processor_type", "processor_class"}  # what save_pretrained adds
        unknown = set(kwargs) - set(self.valid_kwargs.__annotations__) - saved
        if unknown:
            raise TypeError(
                f"FDTImageProcessor has no option {sorted(unknown)}; its options are "
                f"{sorted(self.valid_kwargs.__annotations__)}."
            )
        super().__init__(**kwargs)

    def process_image(self, image: ImageInput, do_convert_rgb: bool | None = None, **kwargs) -> np.ndarray:
        """One picture as an array of shape (channels, height, width)."""
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

    def center_crop(self, image: np.ndarray, size: SizeDict, **kwargs) -> np.ndarray:
        """The central part; torchvision rounds its corner half to even where transformers rounds it down."""
        height, width = image.shape[1:]
        # A picture smaller than the crop is padded with black, the odd pixel at the bottom and right.
        missing_height, missing_width = max(size.height - height, 0), max(size.width - width, 0)
        top, left = missing_height // 2, missing_width // 2
        image = np.pad(image, ((0, 0), (top, missing_height - top), (left, missing_width - left)))
        height, width = image.shape[1:]
        top, left = round((height - size.height) / 2), round((width - size.width) / 2)
        return image[:, top : top + size.height, left : left + size.width]


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
