# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Linear probe: logistic regression on frozen image embeddings, with all training rows and with a few per class."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, recall_score
from sklearn.model_selection import train_test_split
from transformers import PreTrainedModel, ProcessorMixin

from run_scripts.data.source import open_source
from run_scripts.evaluation.arguments import LinearProbeArguments
from run_scripts.evaluation.inputs import describe_data, embed_all_images
from run_scripts.evaluation.results import Chart, Evaluation, Metric


# 1e-6 to 1e6 in eighths of a decade.
STRENGTHS = np.logspace(-6, 6, 97)


@dataclass
class Rows:
    """(num_rows, dim) features with (num_rows,) classes."""

    features: np.ndarray
    labels: np.ndarray

    def select(self, rows: np.ndarray) -> "Rows":
        return Rows(self.features[rows], self.labels[rows])

    def join(self, other: "Rows") -> "Rows":
        return Rows(np.concatenate([self.features, other.features]), np.concatenate([self.labels, other.labels]))


def fit_probe(train: Rows, strength: float) -> LogisticRegression:
    """Multinomial logistic regression with L2 regularisation of the given strength, by L-BFGS.

    Raises:
        ValueError: the rows are of one class.
    """
    if len(np.unique(train.labels)) < 2:
        raise ValueError(f"a linear probe needs rows of at least 2 classes to fit on, got {np.unique(train.labels)}")
    return LogisticRegression(C=1 / strength, max_iter=1000).fit(train.features, train.labels)


def search_strength(validation_accuracy: Callable[[int], float]) -> tuple[int, dict[int, float]]:
    """The best of `STRENGTHS` by the search of the CLIP paper, and the accuracies that were measured on the way.

    It starts with every second decade, then halves the step around the best until it is an eighth of a decade. Of
    equally good ones it keeps the strongest.

    Args:
        validation_accuracy: of a position in `STRENGTHS`.

    Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", appendix A.3.
    """
    step = 16
    tried = {position: validation_accuracy(position) for position in range(0, len(STRENGTHS), step)}
    while step > 1:
        step //= 2
        best = max(tried, key=lambda position: (tried[position], position))
        for position in (best - step, best + step):
            if 0 <= position < len(STRENGTHS) and position not in tried:
                tried[position] = validation_accuracy(position)
    return max(tried, key=lambda position: (tried[position], position)), tried


def tune_probe(train: Rows, validation: Rows) -> tuple[float, dict[int, float]]:
    """The strength that is best on validation rows, and the accuracies by position in `STRENGTHS`."""
    best, tried = search_strength(
        lambda position: fit_probe(train, STRENGTHS[position]).score(validation.features, validation.labels)
    )
    return float(STRENGTHS[best]), tried


def draw_shots(labels: np.ndarray, num_shots: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to fit on, `num_shots` of every class, and other rows to tune on, at most 4 of every class.

    Raises:
        ValueError: a class has not enough rows.
    """
    num_tuning = min(num_shots, 4)
    generator = np.random.default_rng((seed, num_shots))
    shots, tuning = [], []
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        if len(rows) < num_shots + num_tuning:
            raise ValueError(
                f"few_shot={num_shots} needs {num_shots + num_tuning} rows of every class, {num_tuning} of them to "
                f"tune on; class {label} has {len(rows)}"
            )
        shots.append(rows[:num_shots])
        tuning.append(rows[num_shots : num_shots + num_tuning])
    return np.concatenate(shots), np.concatenate(tuning)


def evaluate_linear_probe(
    model: PreTrainedModel, processor: ProcessorMixin, arguments: LinearProbeArguments
) -> Evaluation:
    """Fit on one split, choose the strength on another, fit again on both, and test."""
    splits = {"test": arguments.split, "train": arguments.train_split}
    if arguments.validation_split is not None:
        splits["validation"] = arguments.validation_split
    label_column = arguments.label_column
    datasets = {part: open_source(arguments, split, label_column=label_column) for part, split in splits.items()}
    labels = {part: read_targets(dataset, label_column) for part, dataset in datasets.items()}
    for num_shots in arguments.few_shot:
        draw_shots(labels["train"], num_shots, arguments.seed)  # so that it fails before the long part
    rows = {}
    for part, dataset in datasets.items():
        embeds = embed_all_images(model, processor, dataset, arguments.batch_size)
        rows[part] = Rows(embeds.double().numpy(), labels[part])
    return Evaluation(
        headline=arguments.metric,
        data=[
            describe_data(arguments.dataset, splits[part], dataset, ["image", label_column])
            for part, dataset in datasets.items()
        ],
        **probe(rows["train"], rows.get("validation"), rows["test"], arguments),
    )


def read_targets(dataset: Dataset, column: str) -> np.ndarray:
    """(num_rows,) classes as the column has them.

    Raises:
        ValueError: a row has no label, or what it has is no name or whole number.
    """
    labels = dataset[column][:]
    for row, label in enumerate(labels):
        if not isinstance(label, str | int) or label == -1:
            raise ValueError(f"label_column={column!r} of row {row} is {label!r}, not a class")
    return np.asarray(labels)


def probe(train: Rows, validation: Rows | None, test: Rows, arguments: LinearProbeArguments) -> dict:
    """Metrics, counts and charts of the probes with all rows and with few."""
    if validation is None:
        tuning, held_out = split_off(train, arguments.seed)
        strength, tried = tune_probe(tuning, held_out)
        everything = train
    else:
        strength, tried = tune_probe(train, validation)
        everything = train.join(validation)
    predictions = fit_probe(everything, strength).predict(test.features)
    classes, counts = np.unique(test.labels, return_counts=True)
    chance = float(counts.max() / counts.sum())  # always the most common class
    metrics = {
        "top_1": Metric(float(accuracy_score(test.labels, predictions)), chance),
        "mean_per_class": Metric(mean_recall(test.labels, predictions), 1 / len(classes)),
        "regularisation_log10": Metric(float(np.log10(strength)), unit="number"),
    }
    curve = []
    for num_shots in arguments.few_shot:
        accuracies = [
            few_shot_accuracy(train, test, num_shots, arguments.seed + i) for i in range(arguments.num_seeds)
        ]
        metrics[f"top_1_{num_shots}_shot"] = Metric(statistics.mean(accuracies), chance)
        if len(accuracies) > 1:
            metrics[f"top_1_{num_shots}_shot_std"] = Metric(statistics.stdev(accuracies))
        curve.append((num_shots, statistics.mean(accuracies)))
    sweep = [(float(np.log10(STRENGTHS[position])), accuracy) for position, accuracy in sorted(tried.items())]
    charts = [Chart("Validation accuracy", "line", {"top-1": sweep}, "log10 of the regularisation strength", "top-1")]
    if len(curve) > 1:
        charts.append(Chart("Few shots", "line", {"top-1": curve}, "training rows a class", "top-1", log_x=True))
    counts = {"train_rows": len(everything.labels), "classes": len(np.unique(everything.labels))}
    return {"metrics": metrics, "counts": counts, "charts": charts}


def mean_recall(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Mean accuracy over the classes that the test rows have."""
    return float(recall_score(labels, predictions, average="macro", labels=np.unique(labels), zero_division=0))


def split_off(rows: Rows, seed: int) -> tuple[Rows, Rows]:
    """Four fifths and one fifth of every class.

    Raises:
        ValueError: a class has only one row, or there are more classes than a fifth of the rows.
    """
    try:
        indices = train_test_split(np.arange(len(rows.labels)), test_size=0.2, random_state=seed, stratify=rows.labels)
    except ValueError as error:
        raise ValueError(
            f"train_split cannot give up a fifth for validation; name a validation_split: {error}"
        ) from error
    return rows.select(indices[0]), rows.select(indices[1])


def few_shot_accuracy(train: Rows, test: Rows, num_shots: int, seed: int) -> float:
    """Top-1 of a probe fitted on `num_shots` rows of every class, tuned on a few others."""
    shots, tuning = draw_shots(train.labels, num_shots, seed)
    strength, _ = tune_probe(train.select(shots), train.select(tuning))
    return float(fit_probe(train.select(shots), strength).score(test.features, test.labels))
