# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""How a model uses its codes: how many are active, which never are, and whether both modalities share them."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedModel, ProcessorMixin

from run_scripts.data.source import check_columns, open_dataset
from run_scripts.evaluation.embedding import Features, iterate_caption_features, iterate_image_features
from run_scripts.evaluation.inputs import describe_data, read_captions, read_pictures
from run_scripts.evaluation.results import Chart, Evaluation, EvaluationArguments, Metric
from run_scripts.evaluation.retrieval import list_pairs
from run_scripts.training.code_health import usage_entropy


@dataclass
class CodesArguments(EvaluationArguments):
    caption_column: str = field(
        default="caption", metadata={"help": "Column of captions: lists, or strings with one caption a line."}
    )
    metric: str = field(default="active_per_image", metadata={"help": "The metric that is cited."})


@dataclass
class CodeCounts:
    """How the items of one modality use the codes.

    Attributes:
        mass: (codebook_size,) the weights of all items, each item's brought to sum 1, added up.
        firing: (codebook_size,) in how many items each code is above 0.
        active: (num_items,) how many codes are above 0 in each item.
        supports: (num_items, codebook_size / 8) which codes are above 0, as bits.
    """

    mass: torch.Tensor
    firing: torch.Tensor
    active: torch.Tensor
    supports: np.ndarray


def count_codes(parts: Iterable[Features]) -> CodeCounts:
    """Count code weights that come batch by batch; of each item only one bit a code is kept.

    Raises:
        ValueError: there are no items, or the model has no codes.
    """
    mass, firing, active, supports = 0, 0, [], []
    for part in parts:
        if part.code_weights is None:
            raise ValueError("the task codes needs a model with codes, such as FDT")
        weights = part.code_weights.double()
        is_active = weights > 0
        mass = mass + (weights / weights.sum(dim=1, keepdim=True)).sum(dim=0)
        firing = firing + is_active.sum(dim=0)
        active.append(is_active.sum(dim=1))
        supports.append(np.packbits(is_active.numpy(), axis=1))
    if not active:
        raise ValueError("nothing to embed: there is no picture or caption")
    return CodeCounts(mass, firing, torch.cat(active), np.concatenate(supports))


def jaccard(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Row by row, the share that two sets have in common of all that either has; 0 for two empty sets.

    Args:
        first, second: (num_rows, num_bytes) sets as bits.
    """
    common = np.bitwise_count(first & second).sum(axis=1, dtype=np.int64)
    either = np.bitwise_count(first | second).sum(axis=1, dtype=np.int64)
    return common / np.maximum(either, 1)


def random_partners(pairs: torch.Tensor, num_images: int, seed: int) -> torch.Tensor:
    """For every pair another image than its own, drawn at random; (num_pairs,) positions.

    Raises:
        ValueError: there is one image only.
    """
    if num_images < 2:
        raise ValueError("random pairs need at least 2 images, got 1")
    steps = np.random.default_rng(seed).integers(1, num_images, len(pairs))
    return (pairs[:, 0] + torch.from_numpy(steps)) % num_images


def code_metrics(images: CodeCounts, captions: CodeCounts, pairs: torch.Tensor, seed: int) -> dict[str, Metric]:
    """Sparsity and sharing of codes.

    Args:
        images, captions: what each modality uses.
        pairs: (num_pairs, 2) positions of an image and its caption.
        seed: of the random pairs.

    Returns:
        Metrics by name. Dead codes fire in no image and no caption of the data. Shared codes are those of the others
        that fire in both. Usage entropy is a share of the largest possible: 1 for codes that are all used alike, 0 for
        a single code.
    """
    by_image, by_caption = images.firing > 0, captions.firing > 0
    alive = by_image | by_caption
    others = random_partners(pairs, len(images.active), seed)
    evenness = math.log(len(images.mass))  # the entropy of codes that are all used alike
    caption_supports = captions.supports[pairs[:, 1]]
    return {
        "active_per_image": Metric(images.active.double().mean().item(), unit="number"),
        "active_per_caption": Metric(captions.active.double().mean().item(), unit="number"),
        "dead_codes": Metric((~alive).double().mean().item()),
        "dead_for_images": Metric((~by_image).double().mean().item()),
        "dead_for_captions": Metric((~by_caption).double().mean().item()),
        "shared_codes": Metric((by_image & by_caption).sum().item() / alive.sum().item()),
        "usage_entropy_images": Metric(usage_entropy(images.mass).item() / evenness),
        "usage_entropy_captions": Metric(usage_entropy(captions.mass).item() / evenness),
        "pair_overlap": Metric(
            float(jaccard(images.supports[pairs[:, 0]], caption_supports).mean()),
            chance=float(jaccard(images.supports[others], caption_supports).mean()),
        ),
    }


def evaluate_codes(model: PreTrainedModel, processor: ProcessorMixin, arguments: CodesArguments) -> Evaluation:
    """Count codes over the images and captions of a split."""
    dataset = open_dataset(arguments.dataset, arguments.split, config_name=arguments.config_name)
    columns = {"image_column": arguments.image_column, "caption_column": arguments.caption_column}
    check_columns(dataset, **columns)
    texts, pairs = list_pairs(read_captions(dataset, arguments.caption_column), merge_equal=True)
    pictures = read_pictures(dataset, arguments.image_column)
    captions = count_codes(iterate_caption_features(model, processor, texts, arguments.batch_size))
    images = count_codes(iterate_image_features(model, processor, pictures, arguments.batch_size))
    return Evaluation(
        metrics=code_metrics(images, captions, pairs, arguments.seed),
        headline=arguments.metric,
        data=[describe_data(arguments.dataset, arguments.split, dataset, list(columns.values()))],
        counts={"images": len(images.active), "distinct_captions": len(texts), "codes": len(images.firing)},
        charts=[chart_usage(images, captions)],
    )


def chart_usage(images: CodeCounts, captions: CodeCounts) -> Chart:
    """In what share of items a code fires, codes from the most used to the least."""
    series = {}
    for name, usage in {"images": images, "captions": captions}.items():
        shares = (usage.firing / len(usage.active)).sort(descending=True).values
        places = np.unique(np.geomspace(1, len(shares), 60).round().astype(int))
        series[name] = [(int(place), shares[place - 1].item()) for place in places]
    return Chart(
        title="How often a code fires",
        kind="line",
        series=series,
        x_label="codes, the most used first",
        y_label="share of items",
        log_x=True,
    )
