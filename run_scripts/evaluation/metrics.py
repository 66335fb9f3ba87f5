# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Metrics of retrieval and zero-shot classification, with the level that chance would reach.

All are pure functions, most of them of a matrix of scores, one row for each query and one column for each candidate.
Ties count against the model: one that gives the same score to everything is right about nothing.
"""

import math
from collections import Counter

import torch


def cosine_scores(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Products of all rows, (num_first, num_second) in float32.

    Summed in float64 and then rounded, equal embeddings get equal scores wherever they stand in their matrix; float32
    products differ in their last bits from place to place, and ties would depend on the order.
    """
    return (first.double() @ second.double().T).float()


def first_hit_ranks(scores: torch.Tensor, is_relevant: torch.Tensor) -> torch.Tensor:
    """How many wrong candidates come before the best right one.

    Args:
        scores: (num_queries, num_candidates), higher is better.
        is_relevant: (num_queries, num_candidates) boolean, with at least one right candidate for each query.

    Returns:
        (num_queries,) integers from 0, the best.

    Raises:
        ValueError: shapes differ, scores are not finite, or a query has no right candidate.
    """
    if scores.shape != is_relevant.shape or scores.ndim != 2:
        raise ValueError(
            f"expected two matrices of one shape, got {tuple(scores.shape)} and {tuple(is_relevant.shape)}"
        )
    if not scores.isfinite().all():
        raise ValueError("scores must be finite")
    if not is_relevant.any(dim=1).all():
        raise ValueError("every query needs at least one relevant candidate")
    best = scores.masked_fill(~is_relevant, -math.inf).amax(dim=1, keepdim=True)
    return ((scores >= best) & ~is_relevant).sum(dim=1)


def recall_of(ranks: torch.Tensor, k: int) -> float:
    """Share of queries whose first right candidate has fewer than `k` wrong ones before it.

    Args:
        ranks: (num_queries,) integers from 0, as `first_hit_ranks` gives them.
        k: how many places count.
    """
    return (ranks < k).double().mean().item()


def recall_at(scores: torch.Tensor, is_relevant: torch.Tensor, k: int) -> float:
    """Share of queries with a right candidate among their `k` best; arguments as for `first_hit_ranks`.

    With one right candidate for each query this is also top-k accuracy.
    """
    return recall_of(first_hit_ranks(scores, is_relevant), k)


def chance_recall_of(num_relevant: torch.Tensor, num_candidates: int, k: int) -> float:
    """What `recall_of` gives on average for scores in random order.

    Args:
        num_relevant: (num_queries,) how many right candidates each query has.
        num_candidates: how many candidates there are, the right ones included.
        k: how many places count.
    """
    k = min(k, num_candidates)
    numbers = Counter(num_relevant.tolist())
    misses = {number: math.comb(num_candidates - number, k) / math.comb(num_candidates, k) for number in numbers}
    return 1 - sum(count * misses[number] for number, count in numbers.items()) / len(num_relevant)


def mean_per_class(hits: torch.Tensor, classes: torch.Tensor) -> float:
    """The mean over classes of the share of a class's queries that hit, so that small classes count as large ones do.

    Args:
        hits: (num_queries,) boolean.
        classes: (num_queries,) integers; classes without a query do not count.
    """
    _, positions, counts = classes.unique(return_inverse=True, return_counts=True)
    return (positions.bincount(weights=hits.double()) / counts).mean().item()


def accuracy_among(scores: torch.Tensor, is_relevant: torch.Tensor, num_choices: int, seed: int) -> float:
    """Share of queries whose right candidate beats `num_choices - 1` wrong ones drawn at random.

    Args:
        scores, is_relevant: as for `first_hit_ranks`.
        num_choices: number of candidates shown, the right one included; chance is 1 / num_choices.
        seed: of the draw.

    Raises:
        ValueError: there are not enough wrong candidates.
    """
    num_wrong = int((~is_relevant).sum(dim=1).min())
    if not 2 <= num_choices <= num_wrong + 1:
        raise ValueError(f"num_choices must be from 2 to {num_wrong + 1}, got {num_choices}")
    noise = torch.rand(scores.shape, generator=torch.Generator().manual_seed(seed))
    drawn = noise.masked_fill(is_relevant, -1).topk(num_choices - 1, dim=1).indices
    is_shown = is_relevant.scatter(1, drawn, True)
    shown_scores = scores.masked_fill(~is_shown, scores.min() - 1)
    return recall_at(shown_scores, is_relevant, k=1)


def class_accuracy(scores: torch.Tensor, candidate_classes: torch.Tensor, query_classes: torch.Tensor) -> float:
    """Share of queries whose best candidate is of their own class.

    Args:
        scores: (num_queries, num_candidates), higher is better.
        candidate_classes: (num_candidates,) integers.
        query_classes: (num_queries,) integers.
    """
    is_relevant = candidate_classes[None, :] == query_classes[:, None]
    return recall_at(scores, is_relevant, k=1)


def largest_class_share(query_classes: torch.Tensor) -> float:
    """The `class_accuracy` of always guessing the most common class."""
    return (query_classes.bincount().max() / len(query_classes)).item()
