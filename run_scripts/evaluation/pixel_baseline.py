# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""What needs no model: images compared by 24 x 24 pixels. A number is worth what it has above this."""

from collections.abc import Iterable

import numpy as np
from sklearn.neighbors import NearestNeighbors
from transformers import BaseImageProcessor

from run_scripts.evaluation.embedding import iterate_batches


SIDE = 24


def shrink_images(image_processor: BaseImageProcessor, images: Iterable, batch_size: int = 256) -> np.ndarray:
    """Images at 24 x 24 pixels, (num_images, 1728) from 0 to 1, decoded as the model's own processor decodes them.

    Raises:
        ValueError: there are no images.
    """
    options = {"size": {"height": SIDE, "width": SIDE}, "do_center_crop": False, "do_normalize": False}
    parts = [
        image_processor(images=batch, **options, return_tensors="np")["pixel_values"].reshape(len(batch), -1)
        for batch in iterate_batches(images, batch_size)
    ]
    if not parts:
        raise ValueError("nothing to compare: there is no image")
    return np.concatenate(parts)


def nearest_rows(reference: np.ndarray, queries: np.ndarray, num_neighbours: int = 1) -> np.ndarray:
    """The rows of the reference that are nearest to each query, (num_queries, num_neighbours), the nearest first.

    Args:
        reference: (num_rows, num_features).
        queries: (num_queries, num_features).
        num_neighbours: how many; at most num_rows.
    """
    search = NearestNeighbors(n_neighbors=num_neighbours, algorithm="brute").fit(reference)
    return search.kneighbors(queries, return_distance=False)
