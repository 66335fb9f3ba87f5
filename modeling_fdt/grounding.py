# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""
Grounding: how the tokens of an image or a caption become a sparse combination of codes.

Source: Chen et al., "Revisiting Multimodal Representation in Contrastive Learning: From Patch and Token Embeddings to
Finite Discrete Tokens", CVPR 2023 (arXiv 2303.14865), section 3; sparsemax is Martins and Astudillo, "From Softmax to
Sparsemax", ICML 2016 (arXiv 1602.02068).
"""

import math
from collections.abc import Callable

import torch
from torch import nn

from .configuration_fdt import FDTConfig


class _Sparsemax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores: torch.Tensor) -> torch.Tensor:
        # (rows, codes), at least float32. Shifting by the row's maximum keeps the cumulative sums small.
        scores = scores - scores.amax(dim=-1, keepdim=True)
        ordered = scores.sort(dim=-1, descending=True).values
        ranks = torch.arange(1, scores.shape[-1] + 1, device=scores.device, dtype=scores.dtype)
        sums = ordered.cumsum(dim=-1)
        support_size = (1 + ranks * ordered > sums).sum(dim=-1, keepdim=True)
        threshold = (sums.gather(-1, support_size - 1) - 1) / support_size
        weights = (scores - threshold).clamp(min=0)
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        (weights,) = ctx.saved_tensors
        support = weights > 0
        mean = (grad * support).sum(dim=-1, keepdim=True) / support.sum(dim=-1, keepdim=True)
        return torch.where(support, grad - mean, 0)


def sparsemax(scores: torch.Tensor, dim: int = -1) -> torch.Tensor:
    r"""
    The point of the probability simplex nearest to `scores`: `max(scores - threshold, 0)` with the one threshold that
    makes it sum to 1.

    Args:
        scores (`torch.Tensor` of any shape and floating type):
            Real numbers; `-inf` is allowed (its weight is 0), but at least one score along `dim` must be finite.
        dim (`int`, defaults to -1):
            The dimension along which the weights sum to 1.

    Returns:
        `torch.Tensor`: weights of the shape and type of `scores`, at least 0, summing to 1 along `dim`; adding a
        constant to the scores does not change them. Half-precision scores are computed in float32.

    Raises:
        ValueError: `scores` are not of a floating type or have no element along `dim`.

    Source: Martins and Astudillo, ICML 2016, algorithm 1 and equation 14 for the gradient.
    """
    if not scores.is_floating_point():
        raise ValueError(f"`scores` must be of a floating type, got {scores.dtype}.")
    if scores.shape[dim] == 0:
        raise ValueError(f"`scores` must have an element along `dim` {dim}, got shape {tuple(scores.shape)}.")
    rows = scores.movedim(dim, -1)
    rows_dtype = torch.promote_types(scores.dtype, torch.float32)
    weights = _Sparsemax.apply(rows.reshape(-1, rows.shape[-1]).to(rows_dtype))
    return weights.reshape(rows.shape).movedim(-1, dim).to(scores.dtype)


GROUNDING_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sparsemax": sparsemax,
    "softmax": lambda scores: scores.softmax(dim=-1),
    "sigmoid": torch.sigmoid,
}


def pooled_grounding_scores(
    queries: torch.Tensor,
    codebook: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    token_pooling: str = "max",
    padded_length: int | None = None,
    implementation: str = "auto",
) -> torch.Tensor:
    r"""
    Score every code at every token, `queries @ codebook.T / sqrt(codebook_dim)`, and pool the scores over the tokens.

    Args:
        queries (`torch.Tensor` of shape `(batch_size, num_tokens, codebook_dim)`):
            Projected token features.
        codebook (`torch.Tensor` of shape `(codebook_size, codebook_dim)`):
            The codes.
        attention_mask (`torch.Tensor` of shape `(batch_size, num_tokens)`, *optional*):
            1 (or True) for valid tokens, 0 for padding. Without it every token is valid.
        token_pooling (`str`, defaults to `"max"`):
            `"max"`, `"mean"` or `"sum"` over the valid tokens.
        padded_length (`int`, *optional*):
            If given, a row with fewer valid tokens counts as padded up to this length with tokens of score 0: `max`
            becomes `max(pooled, 0)`, `mean` divides by `padded_length`, `sum` stays. How far a row really is padded
            never matters.
        implementation (`str`, defaults to `"auto"`):
            `"eager"` holds all `(batch_size, num_tokens, codebook_size)` scores; `"auto"` chooses.

    Returns:
        `torch.Tensor` of shape `(batch_size, codebook_size)`: pooled scores before the temperature. A row without any
        valid token has scores 0.

    Raises:
        ValueError: shapes do not fit together, or an option has an unknown name.
    """
    _check_shapes(queries, codebook, attention_mask)
    if implementation not in ("auto", "eager"):
        raise ValueError(f"`implementation` must be 'auto' or 'eager', got {implementation!r}.")
    if token_pooling not in ("max", "mean", "sum"):
        raise ValueError(f"`token_pooling` must be 'max', 'mean' or 'sum', got {token_pooling!r}.")

    scores = queries @ codebook.T / math.sqrt(codebook.shape[-1])  # (batch_size, num_tokens, codebook_size)
    if attention_mask is None:
        is_valid = scores.new_ones(scores.shape[:2], dtype=torch.bool)
    else:
        is_valid = attention_mask.to(torch.bool)
    lengths = is_valid.sum(dim=1, keepdim=True)  # (batch_size, 1)

    if token_pooling == "max":
        pooled = scores.masked_fill(~is_valid[..., None], -torch.inf).max(dim=1).values
        is_floored = lengths < (1 if padded_length is None else max(padded_length, 1))
        return torch.where(is_floored, pooled.clamp(min=0), pooled)
    pooled = scores.masked_fill(~is_valid[..., None], 0).sum(dim=1)
    if token_pooling == "mean":
        pooled = pooled / lengths.clamp(min=1 if padded_length is None else padded_length)
    return pooled


def _check_shapes(queries: torch.Tensor, codebook: torch.Tensor, attention_mask: torch.Tensor | None) -> None:
    if queries.ndim != 3 or codebook.ndim != 2 or queries.shape[-1] != codebook.shape[-1]:
        raise ValueError(
            "`queries` must have shape (batch_size, num_tokens, codebook_dim) and `codebook` (codebook_size, "
            f"codebook_dim), got {tuple(queries.shape)} and {tuple(codebook.shape)}."
        )
    if queries.shape[1] == 0:
        raise ValueError(f"`queries` must have at least one token, got shape {tuple(queries.shape)}.")
    if attention_mask is not None and attention_mask.shape != queries.shape[:2]:
        raise ValueError(
            f"`attention_mask` must have shape {tuple(queries.shape[:2])} as `queries` have, "
            f"got {tuple(attention_mask.shape)}."
        )


class FDTGrounding(nn.Module):
    r"""
    Grounds the token features of one modality in the codebook.

    Token features are projected to queries, every code is scored at every token, scores are pooled over the tokens and
    divided by the temperature, the activation turns them into code weights, and the weighted sum of codes, scaled to
    length 1, is the embedding.

    Args:
        config (`FDTConfig`): the model's configuration.
        hidden_size (`int`): size of the tower's token features.
        padded_length (`int`, *optional*): see [`pooled_grounding_scores`].
    """

    def __init__(self, config: FDTConfig, hidden_size: int, padded_length: int | None = None):
        super().__init__()
        self.query_projection = nn.Sequential(
            nn.LayerNorm(hidden_size),
            nn.Linear(hidden_size, config.codebook_dim),
            nn.GELU(),
            nn.LayerNorm(config.codebook_dim),
            nn.Linear(config.codebook_dim, config.codebook_dim),
        )
        self.config = config
        self.padded_length = padded_length

    def forward(
        self, hidden_states: torch.Tensor, codebook: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        r"""
        Args:
            hidden_states (`torch.Tensor` of shape `(batch_size, num_tokens, hidden_size)`): token features.
            codebook (`torch.Tensor` of shape `(codebook_size, codebook_dim)`): the codes.
            attention_mask (`torch.Tensor` of shape `(batch_size, num_tokens)`, *optional*): 1 for valid tokens.

        Returns:
            The embeddings, `(batch_size, codebook_dim)`, of L2 norm 1, and the code weights, `(batch_size,
            codebook_size)`, at least 0 (sparsemax and softmax: summing to 1).
        """
        queries = self.query_projection(hidden_states)
        pooled_scores = pooled_grounding_scores(
            queries,
            codebook,
            attention_mask,
            token_pooling=self.config.token_pooling,
            padded_length=self.padded_length,
        )
        activation = GROUNDING_ACTIVATIONS[self.config.grounding_activation]
        code_weights = activation(pooled_scores / self.config.grounding_temperature)
        embeds = nn.functional.normalize(code_weights @ codebook, dim=-1)
        return embeds, code_weights
