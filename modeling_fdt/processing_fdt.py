# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Processor of FDT models: images and captions to model inputs, and explanations back to images and words."""

import math
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput
from transformers.processing_utils import ImagesKwargs, ProcessingKwargs, ProcessorMixin, TextKwargs

from .configuration_fdt import FDTConfig
from .explanation_fdt import FDTExplanation, resample_heat_maps
from .image_processing_fdt import build_timm_image_processor
from .towers_fdt import get_context_length


# Words that the captions of every pretrained text tower hold.
_WORDS = ("photo", "of", "cat", "dog")


class FDTProcessorKwargs(ProcessingKwargs, total=False):
    _defaults = {  # type: ignore[misc]
        "text_kwargs": {"padding": True, "truncation": True, "return_attention_mask": True}
    }


class FDTProcessor(ProcessorMixin):
    r"""
    Turns images and captions into what [`FDTModel`] takes.

    Captions are padded to the longest of the batch and, as the original does, cut to the tokenizer's length keeping
    their start, their first tokens and the end token.

    Args:
        image_processor (`FDTImageProcessor`): or any image processor of transformers.
        tokenizer (`FDTTokenizer`):
            Or any tokenizer of transformers. It is made to return an attention mask where it does not: without one
            the padding would count as words.
    """

    valid_processor_kwargs = FDTProcessorKwargs

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        if tokenizer is not None and "attention_mask" not in tokenizer.model_input_names:
            # Also for transformers' pipelines, which call the tokenizer by itself, and for what is saved.
            tokenizer.model_input_names = [*tokenizer.model_input_names, "attention_mask"]
        super().__init__(image_processor, tokenizer, **kwargs)

    @classmethod
    def from_vision_text_pretrained(cls, vision_model: str, text_model: str, config: FDTConfig) -> "FDTProcessor":
        r"""
        The image processor of one checkpoint and the tokenizer of another, or of the same, as a processor.

        Args:
            vision_model (`str`): a name on the Hub or a folder, with an image processor.
            text_model (`str`): likewise, with a tokenizer.
            config ([`FDTConfig`]):
                That of the model, which [`FDTModel.from_vision_text_pretrained`] builds of the same two. Captions are
                cut to its text tower's context.

        Returns:
            [`FDTProcessor`]

        Raises:
            ValueError: the tokenizer does not belong to the text tower: see [`fit_tokenizer`]; or timm's transform is
                not one of [`FDTImageProcessor`].
            OSError: a checkpoint has no image processor, or no tokenizer.
        """
        tokenizer = AutoTokenizer.from_pretrained(text_model)
        fit_tokenizer(text_model, tokenizer, config.text_config)
        vision_config, _ = PreTrainedConfig.get_config_dict(vision_model)
        if "pretrained_cfg" in vision_config:  # of timm
            image_processor = build_timm_image_processor(vision_config["pretrained_cfg"])
        else:
            image_processor = AutoImageProcessor.from_pretrained(vision_model)
        return cls(image_processor=image_processor, tokenizer=tokenizer)

    def __call__(
        self, images: ImageInput | None = None, text: str | list[str] | None = None, **kwargs
    ) -> BatchFeature:
        r"""
        Args:
            images (`PIL.Image.Image`, array, tensor, URL, path, or a list of them, *optional*): images.
            text (`str` or `list[str]`, *optional*): captions.
            kwargs: options of the image processor and the tokenizer, e.g. `return_tensors="pt"`,
                `padding="max_length"`. Padding to a multiple (`pad_to_multiple_of`) ends at the length that captions
                are cut to.

        Returns:
            `BatchFeature` with `pixel_values` of shape `(num_images, 3, height, width)`, `input_ids` and
            `attention_mask` of shape `(num_captions, longest)`, as far as given.

        Raises:
            ValueError: neither images nor captions are given, a list is empty, something is no string, or an option
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
        self._refuse_unknown_options(kwargs)
        for options in (kwargs, kwargs.get("text_kwargs", {}), kwargs.get("common_kwargs", {})):
            if options.get("return_attention_mask") is False:
                raise ValueError(
                    "`return_attention_mask` must be True, got False: without it the model takes padding for words."
                )
        if text is not None:
            kwargs = self._bound_padding(captions, kwargs)
        inputs = super().__call__(images=images, text=text, **kwargs)
        for row, mask in enumerate(inputs.get("attention_mask", [])):
            if not torch.as_tensor(mask).any():
                raise ValueError(f"every caption must have a token, got none of caption {row}, {captions[row]!r}.")
        return inputs

    def _refuse_unknown_options(self, kwargs: dict[str, Any]) -> None:
        text_options = set(TextKwargs.__annotations__)
        image_options = {*ImagesKwargs.__annotations__, *self.image_processor.valid_kwargs.__annotations__}
        groups = {"text_kwargs": text_options, "images_kwargs": image_options}
        # Generic callers such as sentence-transformers pass the options of every modality there is.
        groups[""] = {*text_options, *image_options, *groups, "audio_kwargs", "videos_kwargs", "common_kwargs"}
        for group, known in groups.items():
            unknown = sorted(set(kwargs.get(group, {}) if group else kwargs) - known)
            if unknown:
                where = f" in `{group}`" if group else ""
                raise ValueError(f"FDTProcessor has no option {unknown}{where}; its options are {sorted(known)}.")

    def _bound_padding(self, captions: list[str] | tuple[str, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """`kwargs` with the length that `pad_to_multiple_of` comes to; transformers refuses it beside truncation."""
        text_kwargs = dict(kwargs.get("text_kwargs", {}))
        options = {"padding": True, "truncation": True, **kwargs, **text_kwargs}
        multiple, longest = options.get("pad_to_multiple_of"), options.get("max_length")
        is_off = {False, None, "do_not_pad", "do_not_truncate"}
        if multiple is None or options["padding"] in is_off or options["truncation"] in is_off:
            return kwargs
        width = longest = longest or self.tokenizer.model_max_length
        if options["padding"] != "max_length":
            cut = {
                name: options[name] for name in ("truncation", "max_length", "add_special_tokens") if name in options
            }
            longest_caption = max(len(ids) for ids in self.tokenizer(list(captions), **cut)["input_ids"])
            width = min(math.ceil(longest_caption / multiple) * multiple, longest)
        padding = {"padding": "max_length", "max_length": width, "pad_to_multiple_of": None}
        flat = {name: value for name, value in kwargs.items() if name not in padding}
        return {**flat, "text_kwargs": {**text_kwargs, **padding}}

    def get_crop_box(self, image_size: tuple[int, int]) -> tuple[float, float, float, float]:
        r"""
        What part of an image the model sees, after the image processor's resizing and central crop.

        Args:
            image_size (`tuple[int, int]`): height and width of the image, in pixels.

        Returns:
            Left, top, right and bottom in pixels of the image; beyond its edges where it is padded. Exact for
            [`FDTImageProcessor`]; for another one it is measured, to about a 500th of the image's longer side.

        Raises:
            ValueError: the image processor does more than resize and crop.
        """
        options = self.image_processor
        edges = {edge for edge, length in dict(getattr(options, "size", None) or {}).items() if length}
        # By name: a folder with remote code brings its own copy of the class.
        if type(options).__name__ != "FDTImageProcessor" or edges not in ({"shortest_edge"}, {"height", "width"}):
            return _measure_crop_box(options, image_size)
        height, width = image_size
        resized: tuple[int, ...]
        if not options.do_resize:
            resized = (height, width)
        elif edges == {"shortest_edge"}:
            edge, short = options.size["shortest_edge"], min(height, width)
            resized = tuple(int(edge * side / short) for side in (height, width))
        else:
            resized = (options.size["height"], options.size["width"])
        crop = resized
        if options.do_center_crop:
            crop = (options.crop_size["height"], options.crop_size["width"])
        top, left = round((resized[0] - crop[0]) / 2), round((resized[1] - crop[1]) / 2)
        scale_y, scale_x = height / resized[0], width / resized[1]
        return left * scale_x, top * scale_y, (left + crop[1]) * scale_x, (top + crop[0]) * scale_y

    def post_process_image_explanation(
        self, outputs: FDTExplanation, target_sizes: list[tuple[int, int]]
    ) -> list[dict[str, torch.Tensor]]:
        r"""
        Lay the scores at patches over the original images.

        Args:
            outputs ([`FDTExplanation`]): what [`FDTModel.explain`] returned.
            target_sizes (`list[tuple[int, int]]`): height and width of every original image.

        Returns:
            For every image a `dict` of its codes with a weight above 0: `codes` and `weights` of shape
            `(num_codes,)`, `heat_maps` of shape `(num_codes, height, width)` (NaN outside the crop that the model
            sees), and `boxes` of shape `(num_codes, 4)`: left, top, right, bottom of the patch with the highest score.

        Raises:
            ValueError: there is not one size for each image of the explanation.
        """
        if outputs.patch_scores is None or len(target_sizes) != len(outputs.patch_scores):
            num_images = 0 if outputs.patch_scores is None else len(outputs.patch_scores)
            raise ValueError(f"`target_sizes` must be one for each of {num_images} images, got {target_sizes}.")
        results = []
        for row, image_size in enumerate(target_sizes):
            left, top, right, bottom = box = self.get_crop_box(image_size)
            is_active = outputs.image_weights[row] > 0
            scores = outputs.patch_scores[row, is_active]
            _, grid_height, grid_width = scores.shape
            best = scores.flatten(1).argmax(dim=-1)
            y, x = best // grid_width, best % grid_width
            step_y, step_x = (bottom - top) / grid_height, (right - left) / grid_width
            sides = (left + x * step_x, top + y * step_y, left + (x + 1) * step_x, top + (y + 1) * step_y)
            results.append(
                {
                    "codes": outputs.image_codes[row, is_active],
                    "weights": outputs.image_weights[row, is_active],
                    "heat_maps": resample_heat_maps(scores, box, image_size),
                    "boxes": torch.stack(sides, dim=-1),
                }
            )
        return results

    def post_process_text_explanation(self, outputs: FDTExplanation, text: str | list[str]) -> list[dict]:
        r"""
        Turn the scores at tokens into scores at words.

        Args:
            outputs ([`FDTExplanation`]): what [`FDTModel.explain`] returned for captions that this processor encoded.
            text (`str` or `list[str]`): those captions.

        Returns:
            For every caption a `dict`: `words`, as the tokenizer reads them, its special tokens included; `spans`,
            for each word its start and end in the cleaned caption, or None for a special token; and of its codes with
            a weight above 0 `codes` and `weights` of shape `(num_codes,)`, `scores` of shape `(num_codes,
            num_words)`, the largest over the word's tokens, and `winners`, a list with the position of the winning
            word, or None where no token won (see [`FDTExplanation`]).

        Raises:
            ValueError: there is not one caption for each of the explanation, or a caption has another number of
                tokens than the one explained.
        """
        captions = [text] if isinstance(text, str) else list(text)
        if outputs.token_scores is None or len(captions) != len(outputs.token_scores):
            num_captions = 0 if outputs.token_scores is None else len(outputs.token_scores)
            raise ValueError(f"`text` must be one caption for each of {num_captions} captions, got {len(captions)}.")
        results = []
        for row, caption in enumerate(captions):
            words, spans, word_of_token = self.split_words(caption)
            is_active = outputs.text_weights[row] > 0
            is_token = outputs.token_scores[row, 0] != -torch.inf  # padding may stand on either side
            if is_token.sum() != len(word_of_token):
                raise ValueError(
                    f"`text` must be the captions that were explained: caption {row} has {len(word_of_token)} tokens, "
                    f"that of the explanation has {is_token.sum()}."
                )
            scores = outputs.token_scores[row, is_active][:, is_token]
            token_of_place = (is_token.cumsum(dim=0) - 1).tolist()
            index = torch.tensor(word_of_token, device=scores.device).expand_as(scores)
            word_scores = scores.new_full((len(scores), len(words)), -torch.inf)
            winners = outputs.winning_tokens[row, is_active].tolist()
            results.append(
                {
                    "words": words,
                    "spans": spans,
                    "codes": outputs.text_codes[row, is_active],
                    "weights": outputs.text_weights[row, is_active],
                    "scores": word_scores.scatter_reduce(1, index, scores, reduce="amax"),
                    "winners": [None if winner < 0 else word_of_token[token_of_place[winner]] for winner in winners],
                }
            )
        return results

    def split_words(self, caption: str) -> tuple[list[str], list[tuple[int, int] | None], list[int]]:
        r"""
        The words of a caption, as far as the tokenizer keeps it.

        Returns:
            The words, special tokens included; for each its start and end in the cleaned caption, or None for a
            special token; and for each token the position of its word.
        """
        encoded = self.tokenizer(caption, truncation=True, return_offsets_mapping=True)
        words: list[list[int]] = []
        spans: list[tuple[int, int] | None] = []
        word_of_token: list[int] = []
        last = None
        for token, word_id, span in zip(
            encoded["input_ids"], encoded.word_ids(), encoded["offset_mapping"], strict=True
        ):
            if word_id is None or word_id != last:
                words.append([])
                spans.append(None if word_id is None else tuple(span))
            elif spans[-1] is not None:
                spans[-1] = (spans[-1][0], span[1])
            words[-1].append(token)
            word_of_token.append(len(words) - 1)
            last = word_id
        return [self.tokenizer.decode(tokens) for tokens in words], spans, word_of_token


def fit_tokenizer(name: str, tokenizer: PreTrainedTokenizerBase, text_config: PreTrainedConfig) -> None:
    """
    Make a checkpoint's tokenizer give what its text tower reads: at most its context, and always a mask.

    Args:
        name (`str`): the checkpoint, for the message.
        tokenizer (`PreTrainedTokenizerBase`): that of the checkpoint, which is changed.
        text_config (`PreTrainedConfig`): that of the text tower.

    Raises:
        ValueError: the tokenizer does not belong to the text tower: see [`check_tokenizer`].
    """
    check_tokenizer(name, tokenizer, text_config.vocab_size)
    tokenizer.model_max_length = min(tokenizer.model_max_length, get_context_length(text_config))
    # Some, as SigLIP's, name no mask by default; without it padding would count as tokens.
    tokenizer.model_input_names = ["input_ids", "attention_mask"]


def check_tokenizer(name: str, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """
    Refuse a tokenizer that does not belong to a text tower. Where vocabulary files are missing, transformers makes an
    empty tokenizer without complaint, and every caption becomes the same.

    Args:
        name (`str`): the checkpoint, for the message.
        tokenizer (`PreTrainedTokenizerBase`): that of the checkpoint.
        vocab_size (`int`): number of the text tower's token embeddings.

    Raises:
        ValueError: an id has no embedding, padding has no id, or words have no ids of their own.
    """
    try:
        largest = max(tokenizer.get_vocab().values(), default=-1)
        ids = {word: tokenizer(word, add_special_tokens=False)["input_ids"] for word in _WORDS}
    except Exception as error:  # tokenizers' own are of many types
        raise ValueError(f"{name}: its tokenizer does not work: {error}") from error
    unknown = [word for word in _WORDS if not ids[word] or tokenizer.unk_token_id in ids[word]]
    if largest >= vocab_size:
        raise ValueError(
            f"{name}: the tokenizer has ids up to {largest}, but the text tower's vocabulary ends at {vocab_size - 1}"
        )
    if tokenizer.pad_token_id is None:
        raise ValueError(f"{name}: the tokenizer must name a `pad_token`, got none")
    if unknown:
        raise ValueError(
            f"{name}: the tokenizer does not know the words {unknown}; are its vocabulary files (tokenizer.json, or "
            f"{', '.join(sorted(tokenizer.vocab_files_names.values()))}) missing?"
        )
    if all(len(ids[word]) >= len(word) for word in _WORDS):
        raise ValueError(f"{name}: the tokenizer splits all words into letters; is its file of merges missing?")


def _measure_crop_box(image_processor: Any, image_size: tuple[int, int]) -> tuple[float, float, float, float]:
    """
    What part of an image any image processor leaves, whatever its options mean: red grows from the left to the right
    of a test image and green from the top to the bottom, so the colours that come out tell where they were.
    """
    height, width = image_size
    ramps = np.full((height, width, 3), 255, dtype=np.uint8)
    ramps[..., 0] = np.linspace(0, 255, width).round()
    ramps[..., 1] = np.linspace(0, 255, height).round()[:, None]
    seen, *shades = (
        np.asarray(image_processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"])
        for pixels in (ramps, np.full((2, 2, 3), 0, dtype=np.uint8), np.full((2, 2, 3), 255, dtype=np.uint8))
    )
    spans: list[tuple[float, float] | None] = [None]
    if seen.ndim == 4 and seen.shape[1] == 3:
        # At the centre, for a test image may be padded.
        black, white = (shade[0, :, shade.shape[2] // 2, shade.shape[3] // 2, None, None] for shade in shades)
        red, green, blue = (seen[0] - black) / (white - black)
        is_image = blue > 0.99  # and not padding
        spans = [_find_span(red, is_image, width), _find_span(green.T, is_image.T, height)]
    if None in spans:
        name = type(image_processor).__name__
        raise ValueError(f"{name} does more than resize and crop an image of {height} x {width} pixels.")
    (left, right), (top, bottom) = spans  # type: ignore[misc]
    return left, top, right, bottom


def _find_span(ramp: np.ndarray, is_image: np.ndarray, length: int) -> tuple[float, float] | None:
    """Where the columns of a ramp of that length, 0 to 1, begin and end; None unless they are equally far apart."""
    counts = is_image.sum(axis=0)
    profile = np.where(is_image, ramp, 0).sum(axis=0) / np.maximum(counts, 1)
    # Resampling is no straight line at the edges.
    columns = np.flatnonzero((counts > 0) & (profile > 0.1) & (profile < 0.9))
    if len(columns) < 2:
        return None
    slope, offset = np.polyfit(columns, profile[columns], 1)
    errors = profile[columns] - (offset + slope * columns)
    # A ramp is rounded before and after it is resampled, and may be resampled to the nearest pixel.
    if slope <= 0 or abs(errors).max() > 1.5 / 255 + 0.5 / (length - 1):
        return None
    start, end = (0.5 + (length - 1) * (offset + slope * edge) for edge in (-0.5, len(profile) - 0.5))
    return float(start), float(end)


# What is saved brings this code along.
FDTProcessor.register_for_auto_class()

__all__ = ["FDTProcessor"]
