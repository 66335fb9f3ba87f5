# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Test a model on images that show one named concept each: zero-shot classification, retrieval, use of codes."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from transformers import PreTrainedModel, ProcessorMixin

from run_scripts.evaluation.codes import code_metrics, count_codes
from run_scripts.evaluation.embedding import embed_captions, embed_images
from run_scripts.evaluation.metrics import accuracy_among, class_accuracy, cosine_scores, largest_class_share
from run_scripts.evaluation.pixel_baseline import nearest_rows, shrink_images
from run_scripts.evaluation.results import Metric
from run_scripts.evaluation.retrieval import RECALLS, retrieval_metrics, retrieval_ranks
from run_scripts.evaluation.zero_shot import classification_metrics


NUM_CHOICES = 10


def all_concepts(dataset: DatasetDict) -> dict[str, tuple[str, int]]:
    """Name and category of every concept in any split."""
    columns = ("concept", "caption", "category")
    return {
        concept: (caption, category)
        for split in dataset.values()
        for concept, caption, category in zip(*(split[column] for column in columns), strict=True)
    }


def evaluate_naming(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Iterable,
    shown: list[str],
    concepts: dict[str, tuple[str, int]],
    seed: int,
) -> tuple[dict[str, Metric], list[str]]:
    """Embed images and the names of all concepts, and compare them.

    Args:
        model, processor: what to test.
        images: PIL images or what the processor takes.
        shown: the concept that each image shows.
        concepts: name and category of every concept there is, the candidates of zero-shot classification.
        seed: of all that is drawn.

    Returns:
        Metrics by name (`naming_metrics`, and for a model with codes `code_metrics` of each image with its concept's
        name), and the name that is nearest to each image.
    """
    names = [name for name, _ in concepts.values()]
    index = {concept: position for position, concept in enumerate(concepts)}
    targets = torch.tensor([index[concept] for concept in shown])
    categories = torch.tensor([category for _, category in concepts.values()])
    image_features = embed_images(model, processor, images)
    name_features = embed_captions(model, processor, names)
    image_embeds, name_embeds = image_features.embeds, name_features.embeds
    best = cosine_scores(image_embeds, name_embeds).argmax(dim=1)
    metrics = naming_metrics(image_embeds, name_embeds, targets, categories, seed)
    if image_features.code_weights is not None:
        pairs = torch.stack([torch.arange(len(targets)), targets], dim=1)
        counts = count_codes([image_features]), count_codes([name_features])
        metrics.update(code_metrics(*counts, pairs, seed, model.codebook.detach().float().cpu()))
    return metrics, [names[position] for position in best.tolist()]


def evaluate_drawings(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: DatasetDict,
    split: str,
    concepts: dict[str, tuple[str, int]],
    seed: int,
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """`evaluate_naming` on one split, with the controls of `pixel_controls`: every metric as JSON, and the names."""
    test = dataset[split]
    metrics, predictions = evaluate_naming(model, processor, test["image"], test["concept"][:], concepts, seed)
    for name, control in pixel_controls(processor, dataset["train"], test).items():
        metrics[name].control = control
    return {name: asdict(metric) for name, metric in metrics.items()}, predictions


def list_naming_rows(metrics: dict[str, dict[str, Any]], split: Dataset, num_names: int) -> dict[str, dict[str, Any]]:
    """What a table shows of the metrics of `evaluate_drawings`, by a heading that says among how many."""
    headings = {
        "top_1": f"zero-shot top-1 among {num_names} names",
        "top_5": f"zero-shot top-5 among {num_names} names",
        f"top_1_of_{NUM_CHOICES}": f"zero-shot top-1 among {NUM_CHOICES} names",
        "category": "category accuracy (chance: the largest)",
    }
    candidates = {"image_to_text": f"{len(set(split['concept']))} captions", "text_to_image": f"{len(split)} images"}
    for direction, number in candidates.items():
        headings.update({f"{direction}_R@{k}": f"R@{k} {direction.replace('_', ' ')}, {number}" for k in RECALLS})
    headings["active_per_image"] = "active codes per image"
    headings["active_per_caption"] = "active codes per caption"
    return {heading: metrics[name] for name, heading in headings.items()}


def pixel_controls(processor: ProcessorMixin, train: Dataset, test: Dataset) -> dict[str, float]:
    """The `top_1` and `category` of a trivial method: what the most similar training image shows, by 24 x 24 pixels.

    Args:
        processor: whose image processor decodes the images.
        train, test: splits with the columns `image`, `concept` and `category`.
    """
    pixels = [shrink_images(processor.image_processor, split["image"]) for split in (train, test)]
    nearest = nearest_rows(*pixels)[:, 0]
    controls = {}
    for metric, column in (("top_1", "concept"), ("category", "category")):
        guesses, truth = np.asarray(train[column][:])[nearest], np.asarray(test[column][:])
        controls[metric] = float((guesses == truth).mean())
    return controls


def naming_metrics(
    images: torch.Tensor, names: torch.Tensor, targets: torch.Tensor, categories: torch.Tensor, seed: int
) -> dict[str, Metric]:
    """Zero-shot classification and retrieval.

    Args:
        images: (num_images, dim) embeddings.
        names: (num_concepts, dim) embeddings of the names of all concepts.
        targets: (num_images,) the concept of each image.
        categories: (num_concepts,) the category of each concept, integers from 0.
        seed: draws the other names of the choice among ten.

    Returns:
        `top_k` accuracy among all names, and where there are more than ten also among ten (`top_1_of_10`);
        `category`, how often the best name is of the image's category, whose chance is the largest category's share;
        `retrieval_metrics` between the images and the names of their own concepts.
    """
    num_concepts = len(categories)
    scores = cosine_scores(images, names)  # (num_images, num_concepts)
    is_relevant = torch.arange(num_concepts) == targets[:, None]
    metrics = classification_metrics(scores, targets)
    if num_concepts > NUM_CHOICES:
        accuracy = accuracy_among(scores, is_relevant, NUM_CHOICES, seed)
        metrics[f"top_1_of_{NUM_CHOICES}"] = Metric(accuracy, 1 / NUM_CHOICES)
    metrics["category"] = Metric(
        class_accuracy(scores, categories, categories[targets]), largest_class_share(categories[targets])
    )
    shown, positions = targets.unique(return_inverse=True)  # retrieval is among the concepts of these images
    pairs = torch.stack([torch.arange(len(targets)), positions], dim=1)
    metrics.update(retrieval_metrics(*retrieval_ranks(images, names[shown], pairs), pairs))
    return metrics
