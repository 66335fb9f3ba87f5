# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""
What an FDT model saw: where its codes score high, and what each of them adds to a logit.

An embedding is the normalised weighted sum of codes, so a logit is a sum over pairs of a code of the image and a code
of the caption: `exp(logit_scale) / (|u| |v|) * sum_ij w_i w'_j <c_i, c_j>`, with `u = w @ codebook` for the image's
weights and `v = w' @ codebook` for the caption's.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.utils import ModelOutput

from .towers_fdt import get_patch_size


@dataclass
class FDTExplanation(ModelOutput):
    r"""
    What [`FDTModel.explain`] returns: for every image and caption some of its codes, and what they add to the logits.

    Args:
        logits_per_image (`torch.Tensor` of shape `(image_batch_size, text_batch_size)`, *optional*):
            As in [`FDTOutput`]; given with both images and captions.
        image_codes (`torch.LongTensor` of shape `(image_batch_size, num_image_codes)`):
            Indices of codes, by falling weight unless they were asked for by `codes`.
        image_weights (`torch.Tensor` of shape `(image_batch_size, num_image_codes)`):
            Their weights; 0 for a code that is not active.
        patch_scores (`torch.Tensor` of shape `(image_batch_size, num_image_codes, grid_height, grid_width)`):
            Score of the code at every patch, before the temperature. With max pooling the largest one is what counts.
        text_codes, text_weights (of shape `(text_batch_size, num_text_codes)`): likewise of captions.
        token_scores (`torch.Tensor` of shape `(text_batch_size, num_text_codes, sequence_length)`):
            Score of the code at every token, before the temperature; `-inf` at padding.
        winning_tokens (`torch.LongTensor` of shape `(text_batch_size, num_text_codes)`):
            Position of the token with the highest score. -1 where no token won: with max pooling and
            `padding_score="zero"`, where the padding's score of 0 is higher than that of every token.
        image_contributions (`torch.Tensor` of shape `(image_batch_size, text_batch_size, num_image_codes)`):
            What the code's part of the image adds to the logit: its weight times `<code, text_embeds>`, scaled. Over
            all active codes of the image they sum to the logit. Negative ones push the pair apart.
        text_contributions (`torch.Tensor` of shape `(image_batch_size, text_batch_size, num_text_codes)`):
            The same logit, divided among the codes of the caption.
        shared_codes (`torch.LongTensor` of shape `(image_batch_size, text_batch_size, num_shared_codes)`):
            Codes that are active in both, by falling `shared_contributions`.
        shared_contributions (`torch.Tensor`, of the same shape):
            What the code adds by being in both, the pair of the code with itself: `w_i w'_i <c_i, c_i>`, scaled; at
            least 0, and 0 from where on there is no further shared code.
        same_code_logits (`torch.Tensor` of shape `(image_batch_size, text_batch_size)`):
            Sum of that over all codes: the share of the logit that comes from the same code in both. What the logit
            has beyond it comes from pairs of different codes that point in similar (or, negative, opposite)
            directions.
    """

    logits_per_image: torch.Tensor | None = None
    image_codes: torch.LongTensor | None = None
    image_weights: torch.Tensor | None = None
    patch_scores: torch.Tensor | None = None
    text_codes: torch.LongTensor | None = None
    text_weights: torch.Tensor | None = None
    token_scores: torch.Tensor | None = None
    winning_tokens: torch.LongTensor | None = None
    image_contributions: torch.Tensor | None = None
    text_contributions: torch.Tensor | None = None
    shared_codes: torch.LongTensor | None = None
    shared_contributions: torch.Tensor | None = None
    same_code_logits: torch.Tensor | None = None


def explain_outputs(
    model: Any,
    outputs: Any,
    pixel_values: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    top_k: int | None,
    codes: list[int] | torch.Tensor | None,
) -> FDTExplanation:
    """What [`FDTModel.explain`] returns, from the model and the [`FDTOutput`] for images, captions or both."""
    fields = {"logits_per_image": outputs.logits_per_image}
    image_queries, text_queries = model.get_token_queries(outputs, pixel_values)
    if image_queries is not None:
        grid = get_patch_grid(model, outputs.vision_model_output.last_hidden_state, pixel_values)
        image_codes, image_weights = select_codes(outputs.image_code_weights, top_k, codes)
        patch_scores = score_codes(image_queries, model.codebook, image_codes).unflatten(-1, grid)
        fields.update(image_codes=image_codes, image_weights=image_weights, patch_scores=patch_scores)
    if text_queries is not None:
        text_codes, text_weights = select_codes(outputs.text_code_weights, top_k, codes)
        token_scores = score_codes(text_queries, model.codebook, text_codes, attention_mask)
        winning_tokens = find_winning_tokens(token_scores, model._padded_length, model.config.token_pooling)
        fields.update(text_codes=text_codes, text_weights=text_weights)
        fields.update(token_scores=token_scores, winning_tokens=winning_tokens)
    if outputs.logits_per_image is not None:
        weights = (outputs.image_code_weights, outputs.text_code_weights)
        scale = model.capped_logit_scale.exp().item()
        fields.update(explain_logits(*weights, model.codebook, scale, image_codes, text_codes))
    return FDTExplanation(**fields)


def get_patch_grid(model: Any, last_hidden_state: torch.Tensor, pixel_values: torch.Tensor) -> tuple[int, ...]:
    r"""
    Rows and columns of the image tower's patches.

    Args:
        model (`FDTModel`): whose image tower it is.
        last_hidden_state (`torch.Tensor`): of [`FDTVisionModelOutput`].
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): what it was made from.

    Returns:
        `(grid_height, grid_width)`, whose product is the number of patches.
    """
    if last_hidden_state.ndim == 4:
        return tuple(last_hidden_state.shape[2:])
    num_patches = model._select_patches(last_hidden_state, pixel_values).shape[1]
    return find_patch_grid(num_patches, pixel_values.shape[2:], get_patch_size(model.config.vision_config))


def score_codes(
    queries: torch.Tensor, codebook: torch.Tensor, codes: torch.LongTensor, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    r"""
    Scores of chosen codes at every token, what [`pooled_grounding_scores`] pools; no other score is computed.

    Args:
        queries (`torch.Tensor` of shape `(batch_size, num_tokens, codebook_dim)`): projected token features.
        codebook (`torch.Tensor` of shape `(codebook_size, codebook_dim)`): the codes.
        codes (`torch.LongTensor` of shape `(batch_size, num_codes)`): which codes, for each row.
        attention_mask (`torch.Tensor` of shape `(batch_size, num_tokens)`, *optional*): 1 for valid tokens.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_codes, num_tokens)`, in float32 for half-precision queries; `-inf`
        at padding.
    """
    scores = codebook[codes].to(queries.dtype) @ queries.transpose(1, 2)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) / math.sqrt(codebook.shape[-1])
    return scores if attention_mask is None else scores.masked_fill(attention_mask[:, None] == 0, -torch.inf)


def find_winning_tokens(token_scores: torch.Tensor, padded_length: int | None, token_pooling: str) -> torch.Tensor:
    r"""
    The token with the highest score, or -1 where padding wins.

    Args:
        token_scores (`torch.Tensor` of shape `(batch_size, num_codes, num_tokens)`): `-inf` at padding.
        padded_length (`int`, *optional*), token_pooling (`str`): see [`pooled_grounding_scores`].

    Returns:
        `torch.LongTensor` of shape `(batch_size, num_codes)`.
    """
    best_score, winner = token_scores.max(dim=-1)
    if token_pooling != "max":
        return winner
    num_valid = token_scores.isfinite().sum(dim=-1)
    is_floored = num_valid < max(padded_length or 0, 1)
    return winner.masked_fill(is_floored & (best_score < 0), -1)


def find_patch_grid(num_patches: int, image_size: tuple[int, ...], patch_size: tuple[int, int]) -> tuple[int, ...]:
    r"""
    Rows and columns of a transformer's patches.

    Args:
        num_patches (`int`): how many there are.
        image_size (`tuple[int, int]`): height and width of the pixels.
        patch_size (`tuple[int, int]`): of the first layer. A hierarchical tower (Swin) halves the grid from
            stage to stage and rounds up.

    Returns:
        `(grid_height, grid_width)`, whose product is `num_patches`.

    Raises:
        ValueError: no number of halvings gives that many patches.
    """
    grid = tuple(size // patch for size, patch in zip(image_size, patch_size, strict=True))
    while math.prod(grid) > num_patches and max(grid) > 1:
        grid = tuple(math.ceil(side / 2) for side in grid)
    if math.prod(grid) != num_patches:
        raise ValueError(
            f"{num_patches} patches are no grid of an image of {image_size} pixels with patches of {patch_size}."
        )
    return grid


def select_codes(code_weights: torch.Tensor, top_k: int | None, codes: list[int] | torch.Tensor | None):
    r"""
    The codes to explain, and their weights.

    Args:
        code_weights (`torch.Tensor` of shape `(batch_size, codebook_size)`): at least 0.
        top_k (`int`, *optional*): how many of the largest weights; None for as many as are active in some row.
        codes (list or tensor of `int`, *optional*): these codes instead, for every row.

    Returns:
        Indices and weights, both `(batch_size, num_codes)`.

    Raises:
        ValueError: `top_k` or `codes` is out of range.
    """
    codebook_size = code_weights.shape[-1]
    if codes is not None:
        codes = torch.as_tensor(codes, device=code_weights.device)
        is_index = codes.ndim == 1 and len(codes) > 0 and not codes.is_floating_point()
        if not is_index or codes.min() < 0 or codes.max() >= codebook_size:
            raise ValueError(f"`codes` must be a list of indices from 0 to {codebook_size - 1}, got {codes.tolist()}.")
        codes = codes.long().expand(len(code_weights), -1)
        return codes, code_weights.gather(1, codes)
    if top_k is None:
        top_k = max(int((code_weights > 0).sum(dim=-1).max()), 1)
    if not 1 <= top_k <= codebook_size:
        raise ValueError(f"`top_k` must be from 1 to {codebook_size} or None, got {top_k}.")
    weights, codes = code_weights.topk(top_k, dim=-1)
    return codes, weights


def explain_logits(
    image_code_weights: torch.Tensor,
    text_code_weights: torch.Tensor,
    codebook: torch.Tensor,
    scale: float,
    image_codes: torch.LongTensor,
    text_codes: torch.LongTensor,
) -> dict[str, torch.Tensor]:
    r"""
    Divide logits among codes; computed in float64 and one image at a time.

    Args:
        image_code_weights, text_code_weights (`torch.Tensor` of shape `(batch_size, codebook_size)`): at least 0.
        codebook (`torch.Tensor` of shape `(codebook_size, codebook_dim)`): the codes.
        scale (`float`): the factor on cosine similarities, `exp(logit_scale)`.
        image_codes, text_codes (`torch.LongTensor` of shape `(batch_size, num_codes)`):
            Whose contributions to return. There are no more shared codes than the narrower of the two is wide.

    Returns:
        The fields `image_contributions`, `text_contributions`, `shared_codes`, `shared_contributions` and
        `same_code_logits` of [`FDTExplanation`].
    """
    # Only codes that are active somewhere matter: a small part of a codebook.
    active = ((image_code_weights > 0).any(dim=0) | (text_code_weights > 0).any(dim=0)).nonzero().flatten()
    active_codebook = codebook[active].double()
    image_weights, text_weights = image_code_weights[:, active].double(), text_code_weights[:, active].double()
    image_norms = (image_weights @ active_codebook).norm(dim=-1, keepdim=True)
    text_norms = (text_weights @ active_codebook).norm(dim=-1, keepdim=True)
    # Weights such that an embedding is weights @ codebook, of length 1.
    image_weights, text_weights = image_weights / image_norms, text_weights / text_norms
    image_embeds, text_embeds = image_weights @ active_codebook, text_weights @ active_codebook
    image_parts = image_code_weights.gather(1, image_codes) / image_norms  # (image_batch_size, num_image_codes)
    text_parts = text_code_weights.gather(1, text_codes) / text_norms
    squared_lengths = active_codebook.square().sum(dim=-1)
    num_shared = min(image_codes.shape[1], text_codes.shape[1], len(active))

    image_contributions = torch.einsum("ik,ikd,td->itk", image_parts, codebook[image_codes].double(), text_embeds)
    text_contributions = torch.einsum("tk,tkd,id->itk", text_parts, codebook[text_codes].double(), image_embeds)
    shared = [(weights * text_weights * squared_lengths).topk(num_shared, dim=-1) for weights in image_weights]
    contributions = {
        "image_contributions": image_contributions,
        "text_contributions": text_contributions,
        "shared_contributions": torch.stack([values for values, _ in shared]),
        "same_code_logits": (image_weights * squared_lengths) @ text_weights.T,
    }
    contributions = {name: (part * scale).to(codebook.dtype) for name, part in contributions.items()}
    return {**contributions, "shared_codes": active[torch.stack([places for _, places in shared])]}


def resample_heat_maps(
    scores: torch.Tensor, box: tuple[float, float, float, float], image_size: tuple[int, int]
) -> torch.Tensor:
    r"""
    Scores at patches as maps over the pixels of the original image, bilinear between the patches' centres.

    Args:
        scores (`torch.Tensor` of shape `(num_codes, grid_height, grid_width)`): scores at patches.
        box (`tuple` of 4 `float`): what the grid covers: left, top, right, bottom in pixels of the image.
        image_size (`tuple[int, int]`): height and width of the image.

    Returns:
        `torch.Tensor` of shape `(num_codes, height, width)`; NaN outside the box, where the model sees nothing.
    """
    left, top, right, bottom = box
    rows = torch.arange(image_size[0], device=scores.device, dtype=scores.dtype) + 0.5
    columns = torch.arange(image_size[1], device=scores.device, dtype=scores.dtype) + 0.5
    # In the units of grid_sample: -1 and 1 are the edges of the box.
    rows, columns = (rows - top) / (bottom - top) * 2 - 1, (columns - left) / (right - left) * 2 - 1
    places = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)[None]
    maps = nn.functional.grid_sample(scores[None], places, padding_mode="border", align_corners=False)[0]
    is_outside = (places[0].abs() > 1).any(dim=-1)
    return maps.masked_fill(is_outside, torch.nan)


__all__ = ["FDTExplanation"]
