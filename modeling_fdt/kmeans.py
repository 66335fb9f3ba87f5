# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Codes to start from: the centres of clusters of token queries. Not part of the code that goes to the Hub."""

import torch
from sklearn.cluster import MiniBatchKMeans


def kmeans_codebook(queries: torch.Tensor, codebook_size: int, seed: int) -> torch.Tensor:
    """
    Codes at the centres of clusters of token queries.

    Args:
        queries (`torch.Tensor` of shape `(tokens, codebook_dim)`): projected token features.
        codebook_size: number of codes; at most the number of tokens.
        seed: of k-means.

    Returns:
        `torch.Tensor` of shape `(codebook_size, codebook_dim)`: the centres, shifted and scaled as a whole to mean 0
        and variance 1, which N(0, 1) codes have, so that the temperature keeps its meaning.

    Raises:
        ValueError: there are fewer tokens than codes, or all tokens are the same.
    """
    if len(queries) < codebook_size:
        raise ValueError(
            f"k-means needs at least as many tokens as codes, got {len(queries)} tokens for {codebook_size} codes; "
            "use more pairs or fewer codes (`codebook_size`)"
        )
    batch_size = max(1024, codebook_size)
    kmeans = MiniBatchKMeans(codebook_size, random_state=seed, batch_size=batch_size, n_init=1).fit(queries.numpy())
    centres = torch.from_numpy(kmeans.cluster_centers_).float()
    centred = centres - centres.mean(0)
    if not centred.any():
        raise ValueError(f"k-means needs tokens that differ: all {codebook_size} centres are the same")
    return centred / centred.std()
