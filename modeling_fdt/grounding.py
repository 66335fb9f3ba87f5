# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""
Grounding: how the tokens of an image or a caption become a sparse combination of codes.

Source: Chen et al., "Revisiting Multimodal Representation in Contrastive Learning: From Patch and Token Embeddings to
Finite Discrete Tokens", CVPR 2023 (arXiv 2303.14865), section 3; sparsemax is Martins and Astudillo, "From Softmax to
Sparsemax", ICML 2016 (arXiv 1602.02068).
"""

import importlib.util
import math
import re
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from .configuration_fdt import FDTConfig


# Every copy of this file, like one loaded from the Hub beside the package, has operators of its own: to register
# a name again would free what the first copy still calls.
_OPERATORS = re.sub(r"\W", "_", __name__)

# grounding_triton.py is imported with the first CUDA tensor that needs it, not with the package.
_HAS_TRITON = importlib.util.find_spec("triton") is not None


def _takes_kernels(tensor: torch.Tensor) -> bool:
    """Whether grounding_triton.py takes a tensor: on NVIDIA's cards of compute capability 8.0 and above."""
    return (
        _HAS_TRITON
        and tensor.is_cuda
        and torch.version.hip is None  # AMD's cards are `cuda` to torch too, and their `major` counts otherwise
        and tensor.dtype in (torch.bfloat16, torch.float16, torch.float32)
        and torch.cuda.get_device_properties(tensor.device).major >= 8
    )


def _choose_implementation(queries: torch.Tensor) -> str:
    """What `"auto"` is: a product of float32 without tensor cores, torch's default, is left to torch's own."""
    is_fast = queries.dtype != torch.float32 or torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "triton" if is_fast and _takes_kernels(queries) else "chunked"


def _sparsemax_by_sorting(rows: torch.Tensor) -> torch.Tensor:
    """Sparsemax of every row by its definition: the readable twin, and what is exported."""
    rows = rows - rows.amax(dim=-1, keepdim=True)
    ordered = rows.sort(dim=-1, descending=True).values
    ranks = torch.arange(1, rows.shape[-1] + 1, device=rows.device, dtype=rows.dtype)
    sums = ordered.cumsum(dim=-1)
    support_size = (1 + ranks * ordered > sums).sum(dim=-1, keepdim=True)
    threshold = (sums.gather(-1, support_size - 1) - 1) / support_size
    return (rows - threshold).clamp(min=0)


# How many scores of a row one program holds.
_LONGEST_FUSED_ROW = 65536


@torch.library.custom_op(f"{_OPERATORS}::sparsemax", mutates_args=())
def _sparsemax(rows: torch.Tensor) -> torch.Tensor:
    """Sparsemax of every row by Michelot's method: drop what lies below the threshold of the rest until none does."""
    if _takes_kernels(rows) and rows.shape[-1] <= _LONGEST_FUSED_ROW:
        from .grounding_triton import sparsemax

        return sparsemax(rows)
    # The threshold is at least (largest score - 1), so what lies below that is raised to it: no infinity is left.
    rows = (rows - rows.amax(dim=-1, keepdim=True)).clamp_(min=-1)
    threshold = (rows.sum(dim=-1, keepdim=True) - 1) / rows.shape[-1]
    support = rows.new_ones(rows.shape)
    support_size = None
    while True:
        support = support.mul_(rows > threshold)
        last_size, support_size = support_size, support.sum(dim=-1, keepdim=True)
        threshold = (torch.linalg.vecdot(rows, support).unsqueeze(-1) - 1) / support_size
        if last_size is not None and torch.equal(last_size, support_size):
            return (rows - threshold).clamp_(min=0)


@_sparsemax.register_fake
def _(rows: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(rows)


def _sparsemax_backward(ctx, grad: torch.Tensor) -> torch.Tensor:
    (weights,) = ctx.saved_tensors
    support = weights > 0
    mean = (grad * support).sum(dim=-1, keepdim=True) / support.sum(dim=-1, keepdim=True)
    return torch.where(support, grad - mean, 0)


_sparsemax.register_autograd(
    _sparsemax_backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(output)
)


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
    compute = _sparsemax_by_sorting if _is_exporting() else _sparsemax
    weights = compute(rows.reshape(-1, rows.shape[-1]).to(rows_dtype).contiguous())
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
            The codes. They are converted to the type of the queries.
        attention_mask (`torch.Tensor` of shape `(batch_size, num_tokens)`, *optional*):
            1 (or True) for valid tokens, 0 for padding. Without it every token is valid.
        token_pooling (`str`, defaults to `"max"`):
            `"max"`, `"mean"` or `"sum"` over the valid tokens.
        padded_length (`int`, *optional*):
            If given, a row with fewer valid tokens counts as padded up to this length with tokens of score 0: `max`
            becomes `max(pooled, 0)`, `mean` divides by `padded_length`, `sum` stays. How far a row really is padded
            never matters.
        implementation (`str`, defaults to `"auto"`):
            `"eager"` holds all `(batch_size, num_tokens, codebook_size)` scores, in plain operations. `"chunked"`
            never does: it takes the codebook in parts and keeps pooled scores and winning tokens, and its backward
            pass visits only codes whose gradient is not 0. It has no second derivative. `"triton"` does the same for
            CUDA tensors in kernels of its own: scores are pooled where they are computed. `"auto"` is `"eager"` where
            a model is exported; `"triton"` on NVIDIA's cards of compute capability 8.0 and above for half-precision
            queries, and for float32 if torch multiplies it as TF32; else `"chunked"`.

    Returns:
        `torch.Tensor` of shape `(batch_size, codebook_size)`: pooled scores before the temperature, in float32 for
        half-precision queries. A row without any valid token has scores 0. Of tokens with equal scores the first
        wins the gradient.

    Raises:
        ValueError: shapes do not fit together, an option has an unknown name, or `"triton"` cannot take the queries.
    """
    _check_shapes(queries, codebook, attention_mask)
    if token_pooling not in ("max", "mean", "sum"):
        raise ValueError(f"`token_pooling` must be 'max', 'mean' or 'sum', got {token_pooling!r}.")
    if implementation not in _IMPLEMENTATIONS:
        raise ValueError(f"`implementation` must be one of {list(_IMPLEMENTATIONS)}, got {implementation!r}.")
    if implementation == "auto" and _is_exporting():
        implementation = "eager"
    is_valid = None if attention_mask is None else attention_mask.to(torch.bool)
    pool = _IMPLEMENTATIONS[implementation]
    pooled = pool(queries, codebook.to(queries.dtype), is_valid, token_pooling, padded_length)
    # Scaled last: of all tensors here the pooled scores are the smallest.
    return pooled / math.sqrt(codebook.shape[-1])


def _pool_eager(
    queries: torch.Tensor,
    codebook: torch.Tensor,
    is_valid: torch.Tensor | None,
    token_pooling: str,
    padded_length: int | None,
) -> torch.Tensor:
    scores = queries @ codebook.T  # (batch_size, num_tokens, codebook_size)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if is_valid is None:
        is_valid = scores.new_ones(scores.shape[:2], dtype=torch.bool)
    if token_pooling == "max":
        pooled = scores.masked_fill(~is_valid[..., None], -torch.inf).max(dim=1).values
        return torch.where(_is_floored(is_valid, padded_length), pooled.clamp(min=0), pooled)
    pooled = scores.masked_fill(~is_valid[..., None], 0).sum(dim=1)
    return pooled / _mean_divisor(is_valid, padded_length) if token_pooling == "mean" else pooled


def _pool_chunked(
    queries: torch.Tensor,
    codebook: torch.Tensor,
    is_valid: torch.Tensor | None,
    token_pooling: str,
    padded_length: int | None,
    implementation: str = "chunked",
) -> torch.Tensor:
    if is_valid is None:
        is_valid = queries.new_ones(queries.shape[:2], dtype=torch.bool)
    if token_pooling == "max":
        return _max_scores(queries, codebook, is_valid, _is_floored(is_valid, padded_length), implementation)[0]
    # The sum of scores is the score of the sum.
    pooled_queries = queries.masked_fill(~is_valid[..., None], 0).sum(dim=1)
    pooled = pooled_queries @ codebook.T
    pooled = pooled.to(torch.promote_types(pooled.dtype, torch.float32))
    return pooled / _mean_divisor(is_valid, padded_length) if token_pooling == "mean" else pooled


_IMPLEMENTATIONS: dict[str, Callable] = {
    "auto": partial(_pool_chunked, implementation="auto"),
    "eager": _pool_eager,
    "chunked": _pool_chunked,
    "triton": partial(_pool_chunked, implementation="triton"),
}


def _is_floored(is_valid: torch.Tensor, padded_length: int | None) -> torch.Tensor:
    """Whether a row counts as padded with tokens of score 0, (batch_size, 1). A row without any token always does."""
    return is_valid.sum(dim=1, keepdim=True) < max(padded_length or 0, 1)


def _mean_divisor(is_valid: torch.Tensor, padded_length: int | None) -> torch.Tensor:
    return is_valid.sum(dim=1, keepdim=True).clamp(min=padded_length or 1)


# How many scores are held at a time: 4 MB of float32.
_CHUNK_NUMEL = 2**20


@torch.library.custom_op(f"{_OPERATORS}::max_scores", mutates_args=())
def _max_scores(
    queries: torch.Tensor,
    codebook: torch.Tensor,
    is_valid: torch.Tensor,
    is_floored: torch.Tensor,
    implementation: str = "chunked",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest score of every code over a row's valid tokens, and the token it came from; -1 where 0 is larger."""
    # Chosen in here: torch.compile does not look into an operator.
    if (_choose_implementation(queries) if implementation == "auto" else implementation) == "triton":
        from .grounding_triton import max_scores

        return max_scores(queries, codebook, is_valid, is_floored)
    batch_size, num_tokens, _ = queries.shape
    flat_queries = queries.reshape(batch_size * num_tokens, -1)
    pooled, winners = _empty_max_scores(queries, codebook)
    chunk_size = max(_CHUNK_NUMEL // len(flat_queries) // 64 * 64, 128)
    for start in range(0, len(codebook), chunk_size):
        codes = slice(start, start + chunk_size)
        scores = (flat_queries @ codebook[codes].T).view(batch_size, num_tokens, -1)
        largest, winner = scores.masked_fill_(~is_valid[..., None], -torch.inf).max(dim=1)
        pooled[:, codes], winners[:, codes] = largest, winner
    loses_to_zero = is_floored & (pooled < 0)
    return pooled.masked_fill_(loses_to_zero, 0), winners.masked_fill_(loses_to_zero, -1)


def _empty_max_scores(queries: torch.Tensor, codebook: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (queries.shape[0], codebook.shape[0])
    pooled = queries.new_empty(shape, dtype=torch.promote_types(queries.dtype, torch.float32))
    return pooled, queries.new_empty(shape, dtype=torch.int32)


@_max_scores.register_fake
def _(queries, codebook, is_valid, is_floored, implementation="chunked"):
    return _empty_max_scores(queries, codebook)


@torch.library.custom_op(f"{_OPERATORS}::max_scores_backward", mutates_args=())
def _max_scores_backward(
    grad: torch.Tensor, queries: torch.Tensor, codebook: torch.Tensor, winners: torch.Tensor, implementation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """A winning token receives grad x code, and the code grad x query: work only for codes whose gradient is not 0."""
    if (_choose_implementation(queries) if implementation == "auto" else implementation) == "triton":
        from .grounding_triton import max_scores_backward

        return max_scores_backward(grad, queries, codebook, winners)
    num_tokens = queries.shape[1]
    flat_queries = queries.reshape(-1, queries.shape[-1]).to(grad.dtype)
    code, row = (grad * (winners >= 0)).T.nonzero(as_tuple=True)  # ordered by code
    token = row * num_tokens + winners[row, code]
    weight = grad[row, code]
    grad_codebook = _weighted_sums(flat_queries, token, weight, code, len(codebook))
    order = token.argsort(stable=True)
    grad_queries = _weighted_sums(codebook.to(grad.dtype), code[order], weight[order], token[order], len(flat_queries))
    return grad_queries.view(queries.shape).to(queries.dtype), grad_codebook.to(codebook.dtype)


def _weighted_sums(
    table: torch.Tensor, index: torch.Tensor, weight: torch.Tensor, group: torch.Tensor, num_groups: int
) -> torch.Tensor:
    """For every group the sum of weight x table[index] over its members; groups are given in ascending order."""
    starts = torch.searchsorted(group, torch.arange(num_groups, device=group.device))
    return nn.functional.embedding_bag(index, table, starts, mode="sum", per_sample_weights=weight)


@_max_scores_backward.register_fake
def _(grad, queries, codebook, winners, implementation):
    return queries.new_empty(queries.shape), codebook.new_empty(codebook.shape)


def _save_for_backward(ctx, inputs: tuple, output: tuple[torch.Tensor, torch.Tensor]) -> None:
    queries, codebook, _, _, ctx.implementation = inputs
    ctx.save_for_backward(queries, codebook, output[1])


def _differentiate_max_scores(ctx, grad: torch.Tensor, _: None) -> tuple[torch.Tensor | None, ...]:
    return *_max_scores_backward(grad, *ctx.saved_tensors, ctx.implementation), None, None, None


_max_scores.register_autograd(_differentiate_max_scores, setup_context=_save_for_backward)


def _is_exporting() -> bool:
    """Whether the model is being written down for another runtime, which has no operators of ours."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


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
    """

    def __init__(self, config: FDTConfig, hidden_size: int):
        super().__init__()
        self.query_projection = nn.Sequential(
            nn.LayerNorm(hidden_size),
            nn.Linear(hidden_size, config.codebook_dim),
            nn.GELU(),
            nn.LayerNorm(config.codebook_dim),
            nn.Linear(config.codebook_dim, config.codebook_dim),
        )
        self.config = config

    def forward(
        self,
        hidden_states: torch.Tensor,
        codebook: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        padded_length: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        r"""
        Args:
            hidden_states (`torch.Tensor` of shape `(batch_size, num_tokens, hidden_size)`): token features.
            codebook (`torch.Tensor` of shape `(codebook_size, codebook_dim)`): the codes.
            attention_mask (`torch.Tensor` of shape `(batch_size, num_tokens)`, *optional*): 1 for valid tokens.
            padded_length (`int`, *optional*): see [`pooled_grounding_scores`].

        Returns:
            The embeddings, `(batch_size, codebook_dim)`, of L2 norm 1, and the code weights, `(batch_size,
            codebook_size)`, at least 0 (sparsemax and softmax: summing to 1).
        """
        # A tower may be of lower precision than its grounding.
        queries = self.query_projection(hidden_states.to(codebook.dtype))
        pooled_scores = pooled_grounding_scores(
            queries,
            codebook,
            attention_mask,
            token_pooling=self.config.token_pooling,
            padded_length=padded_length,
        )
        activation = GROUNDING_ACTIVATIONS[self.config.grounding_activation]
        code_weights = activation(pooled_scores / self.config.grounding_temperature)
        embeds = nn.functional.normalize(code_weights.to(codebook.dtype) @ codebook, dim=-1)
        return embeds, code_weights
