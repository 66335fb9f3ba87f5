# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Prompts of zero-shot classification: templates, class names, and the class embeddings made of them."""

import importlib.util
from pathlib import Path
from types import ModuleType

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, ProcessorMixin

from run_scripts.evaluation.embedding import Features, embed_captions, iterate_batches, join_features


SIMPLE_TEMPLATES = [
    "{}",
    "a photo of a {}.",
    "a picture of a {}.",
    "a drawing of a {}.",
    "an image that shows a {}.",
    "a close-up of a {}.",
    "this is a {}.",
]


def load_templates(source: str) -> list[str]:
    """Prompt templates, each with one `{}` where the class name goes.

    Args:
        source: `bare` (the name alone), `simple` (our own seven), `open_clip` (ImageNet's 80, from the package
            open_clip_torch), one template itself (`a {}`), or a text file with one a line.

    Raises:
        ValueError: there is no such file, it is empty, or a line has not exactly one `{}`.
    """
    if source == "bare":
        return ["{}"]
    if source == "simple":
        return list(SIMPLE_TEMPLATES)
    if source == "open_clip":
        return [template("{}") for template in _open_clip_metadata().OPENAI_IMAGENET_TEMPLATES]
    known = ("bare", "simple", "open_clip")
    templates = [source] if "{}" in source else _read_lines("templates", source, known)
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"templates={source!r}: every template needs exactly one {{}}, got {template!r}")
    return templates


def load_class_names(source: str) -> list[str]:
    """Class names in the order of the labels.

    Args:
        source: `open_clip` (ImageNet's, from the package open_clip_torch), or a text file with one name a line.

    Raises:
        ValueError: there is no such file, or it is empty.
    """
    if source == "open_clip":
        return list(_open_clip_metadata().IMAGENET_CLASSNAMES)
    return _read_lines("class_names", source, ("open_clip",))


def embed_classes(
    model: PreTrainedModel, processor: ProcessorMixin, names: list[str], templates: list[str], batch_size: int
) -> Features:
    """One embedding for each class: of its prompts' embeddings, each of length 1, the mean, again of length 1.

    Code weights are treated in the same way, so that their products are cosines too. Equal names get the same
    embedding, to the last bit.
    """
    positions = {name: position for position, name in enumerate(dict.fromkeys(names))}
    parts = []
    for batch in iterate_batches(positions, max(1, batch_size // len(templates))):
        prompts = [template.replace("{}", name) for name in batch for template in templates]
        features = embed_captions(model, processor, prompts, batch_size)
        weights = features.code_weights
        parts.append(
            Features(
                embeds=ensemble(features.embeds, len(templates)),
                code_weights=None if weights is None else ensemble(weights, len(templates)),
            )
        )
    return join_features(parts).select([positions[name] for name in names])


def ensemble(vectors: torch.Tensor, num_templates: int) -> torch.Tensor:
    """(num_classes * num_templates, dim) to (num_classes, dim): normalise, mean over templates, normalise."""
    vectors = F.normalize(vectors, dim=-1).unflatten(0, (-1, num_templates))
    return F.normalize(vectors.mean(dim=1), dim=-1)


def _open_clip_metadata() -> ModuleType:
    # The file by itself: importing the package would need torchvision.
    package = importlib.util.find_spec("open_clip")
    if package is None:
        raise ValueError("open_clip needs the package open_clip_torch: pip install --no-deps open_clip_torch")
    path = Path(package.origin).with_name("zero_shot_metadata.py")
    specification = importlib.util.spec_from_file_location("open_clip_zero_shot_metadata", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def _read_lines(argument: str, source: str, names: tuple[str, ...]) -> list[str]:
    if not Path(source).is_file():
        raise ValueError(f"{argument}={source!r} is no file and none of {list(names)}")
    lines = [line.strip() for line in Path(source).read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line]
    if not lines:
        raise ValueError(f"{argument}={source!r} is empty")
    return lines
