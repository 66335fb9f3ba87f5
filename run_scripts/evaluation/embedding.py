# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Embed images and captions with a trained model, batch by batch."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import torch
from torch.nn import functional as F
from transformers import AutoModel, AutoProcessor, BatchFeature, PreTrainedModel, ProcessorMixin

import modeling_fdt  # noqa: F401 (registers FDT with the Auto classes)
from run_scripts.data.captions import cut_caption


@dataclass
class Features:
    """What a model says of a number of images or captions, on the CPU in float32.

    Attributes:
        embeds: (num_items, dim), rows of length 1.
        code_weights: (num_items, codebook_size), at least 0; None for a model without codes.
    """

    embeds: torch.Tensor
    code_weights: torch.Tensor | None

    def select(self, items: list[int]) -> "Features":
        return Features(self.embeds[items], None if self.code_weights is None else self.code_weights[items])


def load_model(name_or_path: str, device: str | torch.device | None = None) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A two-tower checkpoint (FDT, CLIP, ...) in evaluation mode, with its processor.

    Args:
        name_or_path: a folder, or a name on the Hub.
        device: where the model runs; by default cuda where there is one.

    Raises:
        ValueError: there is no such checkpoint, it has not both towers, or torch finds no such device.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:  # a torch without CUDA asserts that it has it
        raise ValueError(f"device must be one that torch finds here, such as cpu or cuda, got {device!r}") from error
    try:
        model = AutoModel.from_pretrained(name_or_path)
        if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
            found = type(model).__name__
            raise ValueError(f"{name_or_path!r} holds a {found}, which does not embed images and captions")
        processor = AutoProcessor.from_pretrained(name_or_path)
    except OSError as error:
        raise ValueError(f"model={name_or_path!r} cannot be loaded: {error}") from error
    return model.eval().to(device), processor


def hash_tensors(digest: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Add names, types, shapes and contents of tensors, in the order of their names, to a hash of `hashlib`."""
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def hash_model(model: PreTrainedModel, processor: ProcessorMixin) -> str:
    """SHA-256 of all that makes an embedding: the weights, the configuration and the image processing."""
    digest = hashlib.sha256()
    for part in (model.config.to_diff_dict(), processor.image_processor.to_dict()):
        # Where a model was loaded from, and by which classes and version, does not change what it computes.
        names = part.keys() - {"_name_or_path", "architectures", "auto_map", "transformers_version"}
        facts = {name: part[name] for name in names}
        digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    hash_tensors(digest, model.state_dict())
    return digest.hexdigest()


def embed_images(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Iterable,
    batch_size: int = 256,
    keep_code_weights: bool = True,
) -> Features:
    """Embed images (PIL or what the processor takes); an iterable is read batch by batch.

    Without `keep_code_weights` the model's code weights, which take more memory than embeddings, are dropped.
    """
    return join_features(iterate_image_features(model, processor, images, batch_size), keep_code_weights)


def embed_captions(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    captions: Iterable[str],
    batch_size: int = 256,
    keep_code_weights: bool = True,
) -> Features:
    """Embed captions; those longer than the text tower's context are truncated.

    Equal captions are embedded once: in two batches their embeddings would differ in the last bits and not tie.
    """
    captions = list(captions)
    positions = {caption: position for position, caption in enumerate(dict.fromkeys(captions))}
    parts = iterate_caption_features(model, processor, positions, batch_size)
    return join_features(parts, keep_code_weights).select([positions[caption] for caption in captions])


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
    captions = (cut_caption(caption, processor.tokenizer) for caption in captions)
    for batch in iterate_batches(captions, batch_size):
        yield embed_inputs(model, "text", processor(text=batch, return_tensors="pt", padding=True, truncation=True))


def join_features(parts: Iterable[Features], keep_code_weights: bool = True) -> Features:
    """Features of all items in one, with code weights or without.

    Raises:
        ValueError: there are none.
    """
    embeds, code_weights = [], []
    for part in parts:
        embeds.append(part.embeds)
        if keep_code_weights and part.code_weights is not None:
            code_weights.append(part.code_weights)
    if not embeds:
        raise ValueError("nothing to embed: there is no image or caption")
    return Features(torch.cat(embeds), torch.cat(code_weights) if code_weights else None)


def iterate_batches(items: Iterable, batch_size: int) -> Iterator[list]:
    """Lists of `batch_size` items, the last one of what is left."""
    items = iter(items)
    while batch := list(islice(items, batch_size)):
        yield batch


@torch.inference_mode()
def embed_inputs(model: PreTrainedModel, modality: Literal["image", "text"], inputs: BatchFeature) -> Features:
    """Embed one batch that the processor has already made of images or captions."""
    output = getattr(model, f"get_{modality}_features")(**inputs.to(model.device))
    code_weights = output.get(f"{modality}_code_weights")
    return Features(
        embeds=F.normalize(output.pooler_output.float(), dim=-1).cpu(),
        code_weights=None if code_weights is None else code_weights.float().cpu(),
    )
