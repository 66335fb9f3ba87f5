# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""How evenly and how sparsely code weights use the codes; what training counts too."""

import torch


def count_active(code_weights: torch.Tensor) -> torch.Tensor:
    """Mean number of codes above 0 in a row of (batch_size, codebook_size) weights, a scalar on their device."""
    return (code_weights > 0).sum(dim=-1).float().mean()


def count_effective(code_weights: torch.Tensor) -> torch.Tensor:
    """How many codes of equal weight would be as uncertain: exp(entropy) of every row, (batch_size,).

    Args:
        code_weights: (batch_size, codebook_size), at least 0, no row all 0; rows are scaled to sum to 1.
    """
    shares = code_weights / code_weights.sum(dim=-1, keepdim=True)
    return torch.special.entr(shares).sum(dim=-1).exp()


def usage_entropy(mean_code_weights: torch.Tensor) -> torch.Tensor:
    """Entropy of codes, in nats.

    Args:
        mean_code_weights: (codebook_size,), the mean over a batch, at least 0, not all 0; scaled to sum to 1.

    Returns:
        Scalar between 0 (one code has all weight) and log(codebook_size) (all have the same).
    """
    shares = mean_code_weights / mean_code_weights.sum()
    # The gradient of p log p is infinite at 0, where a code has no weight that could receive it.
    return torch.special.entr(shares.clamp(min=1e-12)).sum()
