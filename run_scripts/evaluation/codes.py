# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""How a model uses its codes: how many are active, which never are, and whether both modalities share them."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array, vstack
from transformers import PreTrainedModel, ProcessorMixin

from run_scripts.data.source import open_source
from run_scripts.evaluation.arguments import CodesArguments
from run_scripts.evaluation.code_usage import count_effective, usage_entropy
from run_scripts.evaluation.embedding import Features, iterate_caption_features, iterate_image_features
from run_scripts.evaluation.inputs import describe_data, read_captions, read_images
from run_scripts.evaluation.results import Chart, Evaluation, Metric
from run_scripts.evaluation.retrieval import list_pairs


@dataclass
class CodeCounts:
    """How the items of one modality use the codes.

    Attributes:
        weights: (num_items, codebook_size) code weights, of which only those above 0 are kept.
        mass: (codebook_size,) the weights of all items, each item's brought to sum 1, added up.
        firing: (codebook_size,) in how many items each code is above 0.
        active: (num_items,) how many codes are above 0 in each item.
        effective: (num_items,) how many codes of equal weight would be as uncertain.
    """

    weights: csr_array
    mass: torch.Tensor
    firing: torch.Tensor
    active: torch.Tensor
    effective: torch.Tensor


def count_codes(parts: Iterable[Features]) -> CodeCounts:
    """Count code weights that come batch by batch; of each item only the weights above 0 are kept.

    Raises:
        ValueError: there are no items, or the model has no codes.
    """
    mass, firing, active, effective, kept = 0, 0, [], [], []
    for part in parts:
        if part.code_weights is None:
            raise ValueError("the task needs a model with codes, such as FDT")
        weights = part.code_weights.double()
        mass = mass + (weights / weights.sum(dim=1, keepdim=True)).sum(dim=0)
        firing = firing + (weights > 0).sum(dim=0)
        active.append((weights > 0).sum(dim=1))
        effective.append(count_effective(weights))
        kept.append(csr_array(part.code_weights.float().numpy()))
    if not active:
        raise ValueError("nothing to embed: there is no image or caption")
    return CodeCounts(vstack(kept, format="csr"), mass, firing, torch.cat(active), torch.cat(effective))


def jaccard(first: csr_array, second: csr_array) -> np.ndarray:
    """Row by row, the share that two sets of codes have in common of all that either has; 0 for two empty sets.

    Args:
        first, second: (num_rows, codebook_size) weights; the sets are those above 0.
    """
    first, second = (first > 0).astype(np.int64), (second > 0).astype(np.int64)
    common = first.multiply(second).sum(axis=1)
    return common / np.maximum(first.sum(axis=1) + second.sum(axis=1) - common, 1)


def similarities(first: csr_array, second: csr_array, codebook: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row by row, cosine similarities of embeddings, and what comes of it from the same codes in both.

    Args:
        first, second: (num_rows, codebook_size) code weights.
        codebook: (codebook_size, codebook_dim).

    Returns:
        `(u . v) / (|u| |v|)` and `sum_i w_i w'_i <c_i, c_i> / (|u| |v|)`, both (num_rows,), for `u = w @ codebook`
        and `v = w' @ codebook`: the `same_code_logits` of `FDTModel.explain` without the logit scale.
    """
    codebook = codebook.astype(np.float64)
    one, other = first @ codebook, second @ codebook
    scale = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    same = first.astype(np.float64).multiply(second) @ np.square(codebook).sum(axis=1)
    return (one * other).sum(axis=1) / scale, same / scale


def random_partners(pairs: torch.Tensor, num_images: int, seed: int) -> torch.Tensor:
    """For every pair another image than its own, drawn at random; (num_pairs,) positions.

    Raises:
        ValueError: there is one image only.
    """
    if num_images < 2:
        raise ValueError("random pairs need at least 2 images, got 1")
    steps = np.random.default_rng(seed).integers(1, num_images, len(pairs))
    return (pairs[:, 0] + torch.from_numpy(steps)) % num_images


def code_metrics(
    images: CodeCounts, captions: CodeCounts, pairs: torch.Tensor, seed: int, codebook: torch.Tensor
) -> dict[str, Metric]:
    """Sparsity and sharing of codes.

    Args:
        images, captions: what each modality uses.
        pairs: (num_pairs, 2) positions of an image and its caption.
        seed: of the random pairs.
        codebook: (codebook_size, codebook_dim).

    Returns:
        Metrics by name. Dead codes fire in no image and no caption of the data. Shared codes are those of the others
        that fire in both. Usage entropy is a share of the largest possible: 1 for codes that are all used alike, 0 for
        a single code. Chance of what is measured of pairs is what random pairs have; for
        `similarity_from_shared_codes`, the share of all similarity that comes from the same code in both, it is None
        where random pairs have no positive similarity on average.
    """
    by_image, by_caption = images.firing > 0, captions.firing > 0
    alive = by_image | by_caption
    evenness = math.log(len(images.mass))  # the entropy of codes that are all used alike
    caption_weights = captions.weights[pairs[:, 1].numpy()]
    overlaps, shares = [], []
    for partners in (pairs[:, 0], random_partners(pairs, len(images.active), seed)):
        image_weights = images.weights[partners.numpy()]
        overlaps.append(float(jaccard(image_weights, caption_weights).mean()))
        total, same = similarities(image_weights, caption_weights, codebook.double().numpy())
        shares.append(float(same.mean() / total.mean()) if total.mean() > 0 else None)
    metrics = {
        "active_per_image": Metric(images.active.double().mean().item(), unit="number"),
        "active_per_caption": Metric(captions.active.double().mean().item(), unit="number"),
        "effective_per_image": Metric(images.effective.mean().item(), unit="number"),
        "effective_per_caption": Metric(captions.effective.mean().item(), unit="number"),
        "dead_codes": Metric((~alive).double().mean().item()),
        "dead_for_images": Metric((~by_image).double().mean().item()),
        "dead_for_captions": Metric((~by_caption).double().mean().item()),
        "shared_codes": Metric((by_image & by_caption).sum().item() / alive.sum().item()),
        "usage_entropy_images": Metric(usage_entropy(images.mass).item() / evenness),
        "usage_entropy_captions": Metric(usage_entropy(captions.mass).item() / evenness),
        "pair_overlap": Metric(overlaps[0], chance=overlaps[1]),
    }
    if shares[0] is not None:
        metrics["similarity_from_shared_codes"] = Metric(shares[0], chance=shares[1])
    return metrics


def evaluate_codes(model: PreTrainedModel, processor: ProcessorMixin, arguments: CodesArguments) -> Evaluation:
    """Count codes over the images and captions of a split."""
    dataset = open_source(arguments)
    texts, pairs = list_pairs(read_captions(dataset), merge_equal=True)
    captions = count_codes(iterate_caption_features(model, processor, texts, arguments.batch_size))
    images = count_codes(iterate_image_features(model, processor, read_images(dataset), arguments.batch_size))
    return Evaluation(
        metrics=code_metrics(images, captions, pairs, arguments.seed, model.codebook.detach().float().cpu()),
        headline=arguments.metric,
        data=[describe_data(arguments.dataset, arguments.split, dataset, ["image", "caption"])],
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
