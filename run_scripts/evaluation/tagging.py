# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Zero-shot tagging: which of all concepts does an image show, by the similarity of image and name."""

import numpy as np
import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import PreTrainedModel, ProcessorMixin

from run_scripts.data.source import open_source
from run_scripts.evaluation.arguments import TaggingArguments
from run_scripts.evaluation.embedding import embed_images, iterate_image_features
from run_scripts.evaluation.inputs import describe_data, read_images
from run_scripts.evaluation.metrics import cosine_scores
from run_scripts.evaluation.pixel_baseline import nearest_rows, shrink_images
from run_scripts.evaluation.prompts import embed_classes, load_templates
from run_scripts.evaluation.results import Chart, Evaluation, Metric
from run_scripts.evaluation.truth import collect_names, read_concepts, truth_matrix
from run_scripts.evaluation.truth_metrics import average_precisions, precision_at_number


# How many similar images the control looks at.
NUM_NEIGHBOURS = 10
NUM_SHOWN = 10  # bars of a chart, for the best and for the worst


def tagging_metrics(scores: np.ndarray, is_shown: np.ndarray, suffix: str = "") -> dict[str, Metric]:
    """Mean average precision over the concepts, and the precision of as many tags as an image has concepts.

    Args:
        scores: (num_images, num_concepts), higher is better.
        is_shown: (num_images, num_concepts) boolean; every concept is shown in some image.
        suffix: of the metrics' names.
    """
    prevalence = float(is_shown.mean())
    numbers = is_shown.sum(axis=1)
    chance = float(numbers[numbers > 0].mean()) / is_shown.shape[1]
    return {
        f"mean_average_precision{suffix}": Metric(float(average_precisions(scores, is_shown).mean()), prevalence),
        f"precision{suffix}": Metric(precision_at_number(scores, is_shown), chance),
    }


def neighbour_scores(train_pixels: np.ndarray, train_is_shown: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """(num_images, num_concepts): in what share of the ten most similar images of another split a concept is shown."""
    nearest = nearest_rows(train_pixels, pixels, min(NUM_NEIGHBOURS, len(train_pixels)))
    return train_is_shown[nearest].mean(axis=1)


def evaluate_tagging(model: PreTrainedModel, processor: ProcessorMixin, arguments: TaggingArguments) -> Evaluation:
    """Tag the images of a split; for a model with codes also by the codes' weights alone."""
    dataset = open_source(arguments, concepts="concepts")
    shown = read_concepts(dataset)
    names = collect_names(shown)
    is_shown = truth_matrix(shown, names)
    classes = embed_classes(model, processor, names, load_templates(arguments.templates), arguments.batch_size)
    images = read_images(dataset)
    scores, code_scores = [], []
    for features in iterate_image_features(model, processor, images, arguments.batch_size):
        scores.append(cosine_scores(features.embeds, classes.embeds))
        if features.code_weights is not None:
            weights = F.normalize(features.code_weights, dim=-1)
            code_scores.append(cosine_scores(weights, classes.code_weights))
    scores = torch.cat(scores).numpy()
    metrics = tagging_metrics(scores, is_shown)
    data = [(arguments.split, dataset)]
    if arguments.train_split is not None:
        train = open_source(arguments, arguments.train_split, concepts="concepts")
        data.append((arguments.train_split, train))
        control = tag_by_pixels(processor, train, dataset, names)
        for name, metric in tagging_metrics(control, is_shown).items():
            metrics[name].control = metric.value
    if code_scores:
        metrics.update(tagging_metrics(torch.cat(code_scores).numpy(), is_shown, "_by_codes"))
    columns = ["image", "concepts"]
    return Evaluation(
        metrics=metrics,
        headline=arguments.metric,
        data=[describe_data(arguments.dataset, split, rows, columns) for split, rows in data],
        counts={"images": len(dataset), "concepts": len(names)},
        charts=[chart_by_concept(average_precisions(scores, is_shown), names)],
    )


def best_tags(
    model: PreTrainedModel, processor: ProcessorMixin, dataset: Dataset, names: list[str], templates: list[str]
) -> list[list[str]]:
    """For every image as many names as it has concepts, the most similar first.

    Args:
        model, processor: what tags.
        dataset: rows with `image` and `concepts`.
        names: to choose from; of equal scores the first.
        templates: of the prompts.
    """
    images = embed_images(model, processor, read_images(dataset), keep_code_weights=False).embeds
    scores = cosine_scores(images, embed_classes(model, processor, names, templates, batch_size=64).embeds)
    order = scores.argsort(dim=1, descending=True, stable=True).tolist()
    numbers = [len(shown) for shown in read_concepts(dataset)]
    return [[names[place] for place in row[:number]] for row, number in zip(order, numbers, strict=True)]


def tag_by_pixels(processor: ProcessorMixin, train: Dataset, test: Dataset, names: list[str]) -> np.ndarray:
    """`neighbour_scores` of the images of two splits."""
    pixels = [shrink_images(processor.image_processor, read_images(rows)) for rows in (train, test)]
    return neighbour_scores(pixels[0], truth_matrix(read_concepts(train), names), pixels[1])


def chart_by_concept(precisions: np.ndarray, names: list[str]) -> Chart:
    """Average precision of the concepts that are recognised best and worst."""
    order = (-precisions).argsort(kind="stable")
    shown = order if len(order) <= 2 * NUM_SHOWN else np.concatenate([order[:NUM_SHOWN], order[-NUM_SHOWN:]])
    bars = [(names[concept], float(precisions[concept])) for concept in shown]
    title = "Average precision by concept"
    if len(order) > len(shown):
        title += f": the best {NUM_SHOWN} and the worst {NUM_SHOWN}"
    return Chart(title=title, kind="bar", series={"average precision": bars})
