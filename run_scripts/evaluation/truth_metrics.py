# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Metrics against the truth about an image: what it shows, where, and which code stands for what.

All are pure functions. Ties count against the model, as in `metrics`; average precision, where it treats equal scores
as one step, gives the prevalence to a model that gives the same score to everything.
"""

import numpy as np
from scipy.sparse import csr_array
from sklearn.metrics import average_precision_score


# Tagging


def average_precisions(scores: np.ndarray, is_relevant: np.ndarray) -> np.ndarray:
    """How well every column's scores put the rows first that are relevant to it.

    Args:
        scores: (num_rows, num_columns), higher is better.
        is_relevant: (num_rows, num_columns) boolean, with a relevant row in every column.

    Returns:
        (num_columns,) average precision from 0 to 1; for scores in random order about the share of relevant rows.

    Raises:
        ValueError: shapes differ, scores are not finite, or a column has no relevant row.
    """
    if scores.shape != is_relevant.shape or scores.ndim != 2:
        raise ValueError(f"expected two matrices of one shape, got {scores.shape} and {is_relevant.shape}")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite")
    if not is_relevant.any(axis=0).all():
        raise ValueError("every column needs at least one relevant row")
    return np.array([average_precision_score(*column) for column in zip(is_relevant.T, scores.T, strict=True)])


def precision_at_number(scores: np.ndarray, is_relevant: np.ndarray) -> float:
    """Of a row's n best columns, n being the number that is relevant to it, the share that is; the mean over rows.

    Args:
        scores, is_relevant: as for `average_precisions`; a row without a relevant column does not count.

    Raises:
        ValueError: no row has a relevant column.
    """
    has_any = is_relevant.any(axis=1)
    if not has_any.any():
        raise ValueError("no row has a relevant column")
    scores, is_relevant = scores[has_any], is_relevant[has_any]
    order = np.lexsort((is_relevant, -scores), axis=1)  # of equal scores the wrong ones first
    hits = np.take_along_axis(is_relevant, order, axis=1)
    number = is_relevant.sum(axis=1, keepdims=True)
    is_among = np.arange(scores.shape[1]) < number
    return float(((hits & is_among).sum(axis=1, keepdims=True) / number).mean())


# Localization


def is_inside(box: list[float], ys: np.ndarray, xs: np.ndarray) -> np.ndarray:
    """Which points of a grid are in a box, (num_ys, num_xs) boolean.

    Args:
        box: left, top, right and bottom.
        ys, xs: (num_ys,) and (num_xs,) places of the rows and columns.
    """
    left, top, right, bottom = box
    return ((ys >= top) & (ys < bottom))[:, None] & ((xs >= left) & (xs < right))


def points_at(scores: np.ndarray, is_true: np.ndarray) -> bool:
    """Whether the highest score is at a right place: the pointing game. Chance is the share of right places.

    Args:
        scores: of any shape.
        is_true: boolean, of the same shape.
    """
    if is_true.all() or not is_true.any():
        return bool(is_true.all())
    return bool(scores[is_true].max() > scores[~is_true].max())


def equal_area_iou(heat_map: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union of the truth and as many pixels, those with the highest values.

    No threshold has to be chosen, and only the place is judged, not the size. Of pixels that tie for the last places,
    which resampling makes at the border, the share that is true counts.

    Args:
        heat_map: (height, width); NaN where the model sees nothing.
        truth: (height, width) boolean; only what the model sees of it counts.

    Raises:
        ValueError: the model sees nothing of the truth.
    """
    values, is_true = _seen(heat_map, truth)
    area = int(is_true.sum())
    last = np.partition(values, -area)[-area]
    is_before, is_last = values > last, values == last
    common = is_true[is_before].sum() + (area - is_before.sum()) * is_true[is_last].mean()
    return float(common / (2 * area - common))


def chance_iou(heat_map: np.ndarray, truth: np.ndarray) -> float:
    """What `equal_area_iou` gives for values in random order, but for the spread; arguments likewise.

    For a truth with a share a of the pixels, as many drawn at random have a * a in common with it, of 2a - a * a.
    """
    share = _seen(heat_map, truth)[1].mean()
    return float(share / (2 - share))


def _seen(heat_map: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    is_seen = ~np.isnan(heat_map)
    if not (truth & is_seen).any():
        raise ValueError("the model sees nothing of the truth")
    return heat_map[is_seen], truth[is_seen]


# Codes against truth


def f1_scores(active: csr_array, truth: np.ndarray) -> np.ndarray:
    """F1 of every code as a detector of every concept.

    Args:
        active: (num_images, codebook_size) boolean, which codes are above 0.
        truth: (num_images, num_concepts) boolean, which concepts an image shows.

    Returns:
        (num_concepts, codebook_size): twice the images with both, by those with the code and those with the concept.
    """
    fired, shown = active.sum(axis=0, dtype=np.int64), truth.sum(axis=0)
    return 2 * count_common(active, truth) / np.maximum(fired[None, :] + shown[:, None], 1)


def count_common(active: csr_array, truth: np.ndarray) -> np.ndarray:
    """(num_concepts, codebook_size): in how many images the code fires and the concept is shown."""
    return (csr_array(truth.T.astype(np.int64)) @ active.astype(np.int64)).toarray()


def best_codes(f1: np.ndarray) -> np.ndarray:
    """For every concept the code with the highest F1, of equals the first; -1 where no code has any.

    Args:
        f1: (num_concepts, codebook_size), as `f1_scores` gives it.
    """
    return np.where(f1.max(axis=1) > 0, f1.argmax(axis=1), -1)


def f1_of(codes: np.ndarray, f1: np.ndarray) -> np.ndarray:
    """(num_concepts,) F1 of the code that was chosen for each concept; 0 where there is none."""
    return np.where(codes >= 0, f1[np.arange(len(codes)), codes], 0.0)


def always_f1(truth: np.ndarray) -> np.ndarray:
    """(num_concepts,) F1 of a code that fires for every image, the best that can be had without looking."""
    share = truth.mean(axis=0)
    return 2 * share / (1 + share)


def fires_for_name(codes: np.ndarray, name_active: csr_array) -> tuple[np.ndarray, np.ndarray]:
    """Whether the code of a concept also fires for the concept's name, and for what share of the other names.

    Args:
        codes: (num_concepts,) one code for each concept; -1 fires for nothing.
        name_active: (num_concepts, codebook_size) boolean, which codes are above 0 for each name.

    Returns:
        (num_concepts,) boolean, and (num_concepts,) base rates from 0 to 1.

    Raises:
        ValueError: there are fewer than two names.
    """
    if len(codes) < 2:
        raise ValueError(f"a base rate needs at least 2 names, got {len(codes)}")
    fires = name_active[:, np.maximum(codes, 0)].toarray() & (codes >= 0)  # (name, concept)
    own = fires.diagonal()
    return own, (fires.sum(axis=0) - own) / (len(codes) - 1)


def single_concepts(active: csr_array, truth: np.ndarray) -> np.ndarray:
    """The one concept that most images of a code show, (codebook_size,); -1 where there is none or more than one.

    Args:
        active, truth: as for `f1_scores`.
    """
    fired = active.sum(axis=0, dtype=np.int64)
    has_most = 2 * count_common(active, truth) > fired[None, :]
    return np.where(has_most.sum(axis=0) == 1, has_most.argmax(axis=0), -1)
