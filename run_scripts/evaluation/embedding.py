# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Embed pictures and captions with a trained model, batch by batch."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
from torch.nn import functional as F
from transformers import AutoModel, AutoProcessor, BatchFeature, PreTrainedModel, ProcessorMixin

import modeling_fdt  # noqa: F401 (registers FDT with the Auto classes)


@dataclass
class Features:
    """What a model says of a number of pictures or captions, on the CPU in float32.

    Attributes:
        embeds: (num_items, dim), rows of length 1.
        code_weights: (num_items, codebook_size), at least 0; None for a model without codes.
    """

    embeds: torch.Tensor
    code_weights: torch.Tensor | None


def load_model(name_or_path: str, device: str | torch.device = "cpu") -> tuple[PreTrainedModel, ProcessorMixin]:
    """A two-tower checkpoint (FDT, CLIP, ...) in evaluation mode, with its processor.

    Raises:
        ValueError: the checkpoint has not both towers.
    """
    model = AutoModel.from_pretrained(name_or_path).eval().to(device)
    if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
        raise ValueError(f"{name_or_path!r} holds a {type(model).__name__}, which does not embed images and captions")
    return model, AutoProcessor.from_pretrained(name_or_path)


def embed_images(
    model: PreTrainedModel, processor: ProcessorMixin, images: Iterable, batch_size: int = 256
) -> Features:
    """Embed pictures (PIL or what the processor takes); an iterable is read batch by batch."""
    return join_features(iterate_image_features(model, processor, images, batch_size))


def embed_captions(
    model: PreTrainedModel, processor: ProcessorMixin, captions: Iterable[str], batch_size: int = 256
) -> Features:
    """Embed captions; those longer than the text tower's context are truncated."""
    return join_features(iterate_caption_features(model, processor, captions, batch_size))


def iterate_image_features(
    model: PreTrainedModel, processor: ProcessorMixin, images: Iterable, batch_size: int
) -> Iterator[Features]:
    """`embed_images`, one batch at a time."""
    for batch in iterate_batches(images, batch_size):
        yield embed_inputs(model, "image", processor(images=batch, return_tensors="pt"))


def iterate_caption_features(
    model: PreTrainedModel, processor: ProcessorMixin, captions: Iterable[str], batch_size: int
) -> Iterator[Features]:
    """`embed_captions`, one batch at a time."""
    for batch in iterate_batches(captions, batch_size):
        yield embed_inputs(model, "text", processor(text=batch, return_tensors="pt", padding=True, truncation=True))


def join_features(parts: Iterable[Features]) -> Features:
    """Features of all items in one.

    Raises:
        ValueError: there are none.
    """
    parts = list(parts)
    if not parts:
        raise ValueError("nothing to embed: there is no picture or caption")
    code_weights = [part.code_weights for part in parts]
    return Features(
        embeds=torch.cat([part.embeds for part in parts]),
        code_weights=None if code_weights[0] is None else torch.cat(code_weights),
    )


def iterate_batches(items: Iterable, batch_size: int) -> Iterator[list]:
    """Lists of `batch_size` items, the last one of what is left."""
    items = iter(items)
    while batch := list(islice(items, batch_size)):
        yield batch


@torch.inference_mode()
def embed_inputs(model: PreTrainedModel, modality: Literal["image", "text"], inputs: BatchFeature) -> Features:
    """Embed one batch that the processor has already made of pictures or captions."""
    output = getattr(model, f"get_{modality}_features")(**inputs.to(model.device))
    code_weights = output.get(f"{modality}_code_weights")
    return Features(
        embeds=F.normalize(output.pooler_output.float(), dim=-1).cpu(),
        code_weights=None if code_weights is None else code_weights.float().cpu(),
    )
