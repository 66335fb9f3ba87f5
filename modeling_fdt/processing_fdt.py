# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Processor of FDT models: pictures and captions to model inputs."""

from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput
from transformers.processing_utils import ImagesKwargs, ProcessingKwargs, ProcessorMixin, TextKwargs


class FDTProcessorKwargs(ProcessingKwargs, total=False):
    _defaults = {"text_kwargs": {"padding": True, "truncation": True}}


class FDTProcessor(ProcessorMixin):
    r"""
    Turns pictures and captions into what [`FDTModel`] takes.

    Captions are padded to the longest of the batch and, as the original does, cut to the tokenizer's length keeping
    their start, their first tokens and the end token.

    Args:
        image_processor (`FDTImageProcessor`): or any image processor of transformers.
        tokenizer (`FDTTokenizer`): or any tokenizer of transformers.
    """

    valid_processor_kwargs = FDTProcessorKwargs

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(
        self, images: ImageInput | None = None, text: str | list[str] | None = None, **kwargs
    ) -> BatchFeature:
        r"""
        Args:
            images (`PIL.Image.Image`, array, tensor, URL, path, or a list of them, *optional*): pictures.
            text (`str` or `list[str]`, *optional*): captions.
            kwargs: options of the image processor and the tokenizer, e.g. `return_tensors="pt"`,
                `padding="max_length"`.

        Returns:
            `BatchFeature` with `pixel_values` of shape `(num_images, 3, height, width)`, `input_ids` and
            `attention_mask` of shape `(num_captions, longest)`, as far as given.

        Raises:
            ValueError: neither pictures nor captions are given, a list is empty, something is no string, or an option
                has an unknown name.
        """
        if images is None and text is None:
            raise ValueError("FDTProcessor needs `images`, `text` or both, got neither.")
        if isinstance(images, list | tuple) and len(images) == 0:
            raise ValueError("`images` is an empty list.")
        if text is not None:
            captions = [text] if isinstance(text, str) else text
            if not isinstance(captions, list | tuple) or not captions:
                raise ValueError(f"`text` must be a string or a list of at least one string, got {text!r}.")
            if not all(isinstance(caption, str) for caption in captions):
                raise ValueError(f"every caption must be a string, got {[type(c).__name__ for c in captions]}.")
        known = {"text_kwargs", "images_kwargs", "common_kwargs", "return_tensors"}
        known |= set(TextKwargs.__annotations__) | set(ImagesKwargs.__annotations__)
        unknown = sorted(set(kwargs) - known)
        if unknown:
            raise ValueError(f"FDTProcessor has no option {unknown}; its options are {sorted(known)}.")
        return super().__call__(images=images, text=text, **kwargs)


__all__ = ["FDTProcessor"]
