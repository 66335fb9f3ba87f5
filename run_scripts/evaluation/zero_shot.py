# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Zero-shot classification: the class whose prompts lie nearest to the image."""

import torch
from transformers import PreTrainedModel, ProcessorMixin

from run_scripts.data.source import open_source
from run_scripts.evaluation.arguments import ZeroShotArguments
from run_scripts.evaluation.embedding import iterate_image_features
from run_scripts.evaluation.inputs import describe_data, read_class_names, read_images, read_labels
from run_scripts.evaluation.metrics import chance_recall_of, cosine_scores, first_hit_ranks, mean_per_class, recall_of
from run_scripts.evaluation.prompts import embed_classes, load_class_names, load_templates
from run_scripts.evaluation.results import Chart, Evaluation, Metric


NUM_SHOWN = 20  # bars of a chart


def classification_metrics(scores: torch.Tensor, targets: torch.Tensor) -> dict[str, Metric]:
    """Top-1, top-5 and mean per class; ties count against the model.

    Args:
        scores: (num_images, num_classes), higher is better.
        targets: (num_images,) positions of the right classes.
    """
    num_classes = scores.shape[1]
    ranks = first_hit_ranks(scores, torch.arange(num_classes) == targets[:, None])
    metrics = {
        f"top_{k}": Metric(recall_of(ranks, k), chance_recall_of(torch.ones(1, dtype=torch.long), num_classes, k))
        for k in (1, 5)
        if k < num_classes
    }
    metrics["mean_per_class"] = Metric(mean_per_class(ranks < 1, targets), 1 / num_classes)
    return metrics


def evaluate_zero_shot(model: PreTrainedModel, processor: ProcessorMixin, arguments: ZeroShotArguments) -> Evaluation:
    """Classify the images of a split by prompts; for a model with codes also by the codes' weights alone."""
    dataset = open_source(arguments, label_column=arguments.label_column)
    names, targets = read_classes(dataset, arguments.label_column, arguments.class_names)
    templates = load_templates(arguments.templates)

    classes = embed_classes(model, processor, names, templates, arguments.batch_size)
    scores, code_scores = [], []
    for features in iterate_image_features(model, processor, read_images(dataset), arguments.batch_size):
        scores.append(cosine_scores(features.embeds, classes.embeds))
        if features.code_weights is not None:
            weights = torch.nn.functional.normalize(features.code_weights, dim=-1)
            code_scores.append(cosine_scores(weights, classes.code_weights))
    scores = torch.cat(scores)
    metrics = classification_metrics(scores, targets)
    if code_scores:
        by_codes = classification_metrics(torch.cat(code_scores), targets)
        metrics.update({f"{name}_by_codes": metric for name, metric in by_codes.items()})
    return Evaluation(
        metrics=metrics,
        headline=arguments.metric,
        data=[describe_data(arguments.dataset, arguments.split, dataset, ["image", arguments.label_column])],
        counts={"classes": len(names), "templates": len(templates), "equal_names": len(names) - len(set(names))},
        charts=[chart_by_class(scores, targets, names)] if len(targets) >= 5 * len(names) else [],
    )


def read_classes(dataset, label_column: str, class_names: str | None) -> tuple[list[str], torch.Tensor]:
    """Names for the prompts, and the class of every row as a position among them.

    Raises:
        ValueError: there are fewer than two classes, or not as many given names as the column has.
    """
    names = None if class_names is None else load_class_names(class_names)
    own_names = getattr(dataset.features[label_column], "names", None)
    if names is not None and own_names is not None and len(names) != len(own_names):
        raise ValueError(
            f"class_names={class_names!r} has {len(names)} names, but label_column={label_column!r} has "
            f"{len(own_names)} classes"
        )
    if names is None:
        names = read_class_names(dataset, label_column)
    if len(names) < 2:
        raise ValueError(f"label_column={label_column!r} has {len(names)} class; classification needs at least 2")
    return [name.replace("_", " ") for name in names], read_labels(dataset, label_column, names)


def chart_by_class(scores: torch.Tensor, targets: torch.Tensor, names: list[str]) -> Chart:
    """Top-1 by class; of many classes those with the most images."""
    hits = first_hit_ranks(scores, torch.arange(len(names)) == targets[:, None]) < 1
    counts = targets.bincount(minlength=len(names))
    shown = counts.argsort(descending=True, stable=True)[:NUM_SHOWN]
    shares = [(names[c], hits[targets == c].double().mean().item()) for c in shown.tolist() if counts[c] > 0]
    title = "Top-1 by class" if len(shares) == (counts > 0).sum() else f"Top-1 of the {NUM_SHOWN} largest classes"
    return Chart(title=title, kind="bar", series={"top-1": sorted(shares, key=lambda pair: -pair[1])})
