# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""The nearest images by embeddings (FAISS) and by code weights (an inverted index in SciPy)."""

from typing import Literal

import faiss
import numpy as np
import scipy.sparse


FAISS_FACTORIES = {"flat": "Flat", "hnsw": "HNSW32"}


def build_dense_index(embeds: np.ndarray, kind: Literal["flat", "hnsw"]) -> faiss.Index:
    """A FAISS index of embeddings by inner product.

    Args:
        embeds: (num_images, dim) float32, rows of length 1.
        kind: `flat` compares with every image and is exact, `hnsw` walks a graph and is approximate.
    """
    index = faiss.index_factory(embeds.shape[1], FAISS_FACTORIES[kind], faiss.METRIC_INNER_PRODUCT)
    index.add(embeds)
    return index


def stack_codes(codes: list[np.ndarray], code_weights: list[np.ndarray], codebook_size: int) -> scipy.sparse.csr_array:
    """Active codes and weights of images as a matrix of shape (num_images, codebook_size)."""
    starts = np.cumsum([0, *map(len, codes)])
    # SciPy keeps 4 bytes for a code's number only where the starts take no more than that.
    starts = starts.astype(np.int32 if starts[-1] < 2**31 else np.int64)
    entries = (np.concatenate(code_weights), np.concatenate(codes), starts)
    return scipy.sparse.csr_array(entries, shape=(len(codes), codebook_size))


def build_inverted_index(code_weights: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    """The inverted index of code weights: for each code the images in which it is active.

    Args:
        code_weights: (num_images, codebook_size) at least 0, with a weight in every row.

    Returns:
        (codebook_size, num_images), columns of length 1, so that the product with a query of length 1 is the cosine.
    """
    lengths = np.sqrt(code_weights.multiply(code_weights).sum(axis=1))
    scaled = code_weights.multiply(1 / lengths[:, None])
    return scaled.T.tocsr().astype(np.float32)


def keep_largest(codes: np.ndarray, code_weights: np.ndarray, num_codes: int) -> tuple[np.ndarray, np.ndarray]:
    """Of an image's active codes, in rising order, and their weights: those with the `num_codes` largest weights."""
    kept = np.sort(np.argsort(-code_weights, kind="stable")[:num_codes])
    return codes[kept], code_weights[kept]


def score_images(inverted_index: scipy.sparse.csr_array, code_weights: np.ndarray) -> np.ndarray:
    """Cosines of a query's code weights with those of all images.

    Args:
        inverted_index: (codebook_size, num_images), from `build_inverted_index`.
        code_weights: (codebook_size,) of the query, not all 0. Only the rows of its active codes are read.

    Returns:
        (num_images,) in [0, 1].
    """
    active = np.flatnonzero(code_weights)
    weights = code_weights[active] / np.linalg.norm(code_weights)
    return weights @ inverted_index[active]


def best(scores: np.ndarray, top_k: int) -> np.ndarray:
    """Positions of the `top_k` highest scores above 0, best first; of equal ones the first."""
    candidates = np.flatnonzero(scores > 0)
    if len(candidates) > top_k:
        values = scores[candidates]
        candidates = candidates[values >= np.partition(values, -top_k)[-top_k]]
    return candidates[np.lexsort((candidates, -scores[candidates]))][:top_k]


def search_dense(
    index: faiss.Index, queries: np.ndarray, top_k: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows of the `top_k` nearest embeddings, of all or of the allowed rows, best first.

    Args:
        allowed: (num_rows,), for every row whether it may be found.

    Returns:
        Both of shape (num_queries, top_k). Where there are fewer rows, the rest is of row -1.
    """
    options = {} if allowed is None else {"sel": faiss.IDSelectorBatch(np.flatnonzero(allowed))}
    if isinstance(index, faiss.IndexHNSW):
        # The walk keeps this many candidates: more finds more of the nearest, and must be no fewer than are asked for.
        parameters = faiss.SearchParametersHNSW(efSearch=max(128, top_k), **options)
    else:
        parameters = faiss.SearchParameters(**options)
    return index.search(queries, top_k, params=parameters)
