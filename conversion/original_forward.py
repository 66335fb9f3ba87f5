# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""The original's forward pass, written down plainly, straight from a checkpoint's tensors.

This is the reference that `--verify` and the tests compare against. It shares no code with `modeling_fdt` or with
transformers' towers, reads the original's names, and prefers clarity to speed.

Source: https://github.com/yuxiaochen1103/FDT at commit ccf6983, checked against outputs recorded from it
(`tests/test_parity.py`).
"""

import math
from collections.abc import Mapping

import torch

from .original_config import CodebookDims, OriginalConfig, SwinDims, VisionTransformerDims


Tensors = Mapping[str, torch.Tensor]


def _linear(x: torch.Tensor, tensors: Tensors, name: str) -> torch.Tensor:
    y = x @ tensors[f"{name}.weight"].T
    return y + tensors[f"{name}.bias"] if f"{name}.bias" in tensors else y


def _layer_norm(x: torch.Tensor, tensors: Tensors, name: str) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    normalised = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return normalised * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def _gelu(x: torch.Tensor) -> torch.Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def _patches(pixel_values: torch.Tensor, size: int) -> torch.Tensor:
    """(batch, 3, height, width) -> (batch, patches in reading order, 3 * size * size)."""
    patches = pixel_values.unfold(2, size, size).unfold(3, size, size)  # (batch, 3, rows, columns, size, size)
    return patches.permute(0, 2, 3, 1, 4, 5).flatten(1, 2).flatten(2)


def _clip_blocks(
    x: torch.Tensor, tensors: Tensors, prefix: str, layers: int, heads: int, causal: bool
) -> torch.Tensor:
    batch, num_tokens, width = x.shape
    hidden = torch.full((num_tokens, num_tokens), -math.inf, dtype=x.dtype).triu(1) if causal else 0.0
    for layer in range(layers):
        name = f"{prefix}.transformer.resblocks.{layer}"
        normed = _layer_norm(x, tensors, f"{name}.ln_1")
        qkv = normed @ tensors[f"{name}.attn.in_proj_weight"].T + tensors[f"{name}.attn.in_proj_bias"]
        q, k, v = qkv.reshape(batch, num_tokens, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / math.sqrt(width // heads) + hidden
        attended = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, num_tokens, width)
        x = x + _linear(attended, tensors, f"{name}.attn.out_proj")
        inner = _linear(_layer_norm(x, tensors, f"{name}.ln_2"), tensors, f"{name}.mlp.c_fc")
        x = x + _linear(inner * torch.sigmoid(1.702 * inner), tensors, f"{name}.mlp.c_proj")
    return x


def _vision_transformer(tensors: Tensors, dims: VisionTransformerDims, pixel_values: torch.Tensor) -> torch.Tensor:
    """Tokens after the last block, the class token first: (batch, 1 + patches, width)."""
    x = _patches(pixel_values, dims.patch_size) @ tensors["visual.conv1.weight"].flatten(1).T
    x = torch.cat([tensors["visual.class_embedding"].expand(len(x), 1, -1), x], dim=1)
    x = _layer_norm(x + tensors["visual.positional_embedding"], tensors, "visual.ln_pre")
    return _clip_blocks(x, tensors, "visual", dims.layers, dims.heads, causal=False)


def _swin_windows(side: int, window: int, shift: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Which tokens attend to which, for a square of `side` by `side` tokens cut into windows after a cyclic shift.

    Returns:
        Token numbers by window (windows, window * window); which pairs come from parts of the image that the shift
        brought together (windows, window * window, window * window); row and column differences of all pairs
        (window * window, window * window, 2).
    """
    row, column = (grid.flatten() for grid in torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"))
    order = torch.argsort((row // window) * side + column // window, stable=True).view(-1, window * window)
    row, column = row[order], column[order]  # position after the shift
    token = (row + shift) % side * side + (column + shift) % side
    region = sum(
        scale * ((axis >= side - window).long() + (axis >= side - shift).long())
        for axis, scale in ((row, 3), (column, 1))
    )
    inside = torch.stack([row[0] % window, column[0] % window], -1)
    return token, region[:, :, None] != region[:, None, :], inside[:, None] - inside[None, :]


def _swin_attention(x: torch.Tensor, tensors: Tensors, name: str, heads: int, windows: tuple) -> torch.Tensor:
    token, is_foreign, difference = windows
    batch, _, width = x.shape
    num_windows, num_tokens = token.shape
    x = x[:, token]  # (batch, windows, tokens of a window, width)
    q, k, v = (x @ part.T for part in tensors[f"{name}.qkv.weight"].chunk(3))
    q, v = q + tensors[f"{name}.q_bias"], v + tensors[f"{name}.v_bias"]
    q, k, v = (part.reshape(batch, num_windows, num_tokens, heads, -1).transpose(2, 3) for part in (q, k, v))
    q, k = (part / part.norm(dim=-1, keepdim=True).clamp(min=1e-12) for part in (q, k))
    scores = q @ k.transpose(-1, -2) * tensors[f"{name}.logit_scale"].clamp(max=math.log(100)).exp()

    # Continuous position bias: an MLP of log-spaced distances, scaled so that the window's edge is at 8.
    distance = difference.to(x.dtype) / (math.sqrt(num_tokens) - 1) * 8
    distance = distance.sign() * torch.log2(distance.abs() + 1) / math.log2(8)
    bias = _linear(_linear(distance, tensors, f"{name}.cpb_mlp.0").relu(), tensors, f"{name}.cpb_mlp.2")
    scores = scores + 16 * torch.sigmoid(bias.permute(2, 0, 1))
    scores = scores - 100.0 * is_foreign[:, None]

    attended = (scores.softmax(-1) @ v).transpose(2, 3).reshape(batch, num_windows * num_tokens, width)
    back = torch.empty_like(attended)
    back[:, token.flatten()] = attended
    return _linear(back, tensors, f"{name}.proj")


def _swin(tensors: Tensors, dims: SwinDims, pixel_values: torch.Tensor) -> torch.Tensor:
    """Tokens after the last stage, before the final norm: (batch, tokens, channels)."""
    projection = tensors["visual.patch_embed.proj.weight"].flatten(1)
    x = _patches(pixel_values, dims.patch_size) @ projection.T + tensors["visual.patch_embed.proj.bias"]
    x = _layer_norm(x, tensors, "visual.patch_embed.norm")
    side = dims.input_resolution // dims.patch_size
    for stage, (depth, heads) in enumerate(zip(dims.depths, dims.num_heads, strict=True)):
        for block in range(depth):
            name = f"visual.layers.{stage}.blocks.{block}"
            window = min(side, dims.window_size)
            shift = dims.window_size // 2 if block % 2 and side > dims.window_size else 0
            attended = _swin_attention(x, tensors, f"{name}.attn", heads, _swin_windows(side, window, shift))
            x = x + _layer_norm(attended, tensors, f"{name}.norm1")
            inner = _linear(_gelu(_linear(x, tensors, f"{name}.mlp.fc1")), tensors, f"{name}.mlp.fc2")
            x = x + _layer_norm(inner, tensors, f"{name}.norm2")
        if stage + 1 < len(dims.depths):
            name = f"visual.layers.{stage}.downsample"
            grid = x.reshape(len(x), side, side, -1)
            corners = (grid[:, row::2, column::2] for column in (0, 1) for row in (0, 1))  # down first, then across
            x = torch.cat(list(corners), -1).flatten(1, 2)
            x = _layer_norm(_linear(x, tensors, f"{name}.reduction"), tensors, f"{name}.norm")
            side //= 2
    return x


def _text_transformer(tensors: Tensors, config: OriginalConfig, input_ids: torch.Tensor) -> torch.Tensor:
    """Tokens after the final layer norm: (batch, context, width)."""
    x = tensors["encode_text.token_embedding.weight"][input_ids] + tensors["encode_text.positional_embedding"]
    x = _clip_blocks(x, tensors, "encode_text", config.text.layers, config.text.heads, causal=True)
    return _layer_norm(x, tensors, "encode_text.ln_final")


def sparsemax_by_sorting(scores: torch.Tensor) -> torch.Tensor:
    """The point of the simplex nearest to `scores` (..., codes). Source: Martins and Astudillo 2016, algorithm 1."""
    ordered = scores.sort(dim=-1, descending=True).values
    total = ordered.cumsum(-1) - 1
    rank = torch.arange(1, scores.shape[-1] + 1, dtype=scores.dtype)
    support = (ordered * rank > total).sum(-1, keepdim=True)
    threshold = total.gather(-1, support - 1) / support
    return (scores - threshold).clamp(min=0)


def _ground(
    tensors: Tensors,
    name: str,
    codebook: CodebookDims,
    temperature: float,
    x: torch.Tensor,
    is_token: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features before L2 normalisation (batch, dim) and code weights (batch, codes)."""
    query = _linear(_layer_norm(x, tensors, f"{name}.q_map.0"), tensors, f"{name}.q_map.1")
    query = _linear(_layer_norm(_gelu(query), tensors, f"{name}.q_map.3"), tensors, f"{name}.q_map.4")
    scores = query @ tensors["space_dict"].T / math.sqrt(codebook.dim)  # (batch, tokens, codes)
    if is_token is not None:
        scores = scores * is_token[:, :, None]  # Official: padding scores 0, it is not left out.
    scores = scores / temperature
    pooled = {"max": lambda: scores.amax(1), "mean": lambda: scores.mean(1), "sum": lambda: scores.sum(1)}
    activation = {"sparsemax": sparsemax_by_sorting, "softmax": lambda z: z.softmax(-1), "sigmoid": torch.sigmoid}
    weights = activation[codebook.activation](pooled[codebook.pooling]())
    features = weights @ tensors["space_dict"]
    if codebook.activation == "sigmoid":
        features = features / weights.sum(-1, keepdim=True)
    return features, weights


def original_forward(
    tensors: Tensors,
    config: OriginalConfig,
    last_iter: int,
    pixel_values: torch.Tensor,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """
    Computes what the original computes.

    Args:
        tensors: the checkpoint's tensors by the original's names, without `module.`.
        config: the run's configuration.
        last_iter: the training step, which sets the grounding temperature.
        pixel_values: (batch, 3, resolution, resolution), ImageNet-normalised.
        input_ids: (batch, context), padded with 0.
        attention_mask: (batch, context), 1 for tokens and 0 for padding.

    Returns:
        FDT: `patch_features`, `token_features`, `image_fdt_features`, `text_fdt_features` (before L2 normalisation),
        `image_fdt_weights`, `text_fdt_weights`. CLIP baseline: `image_features`, `text_features` (before L2
        normalisation). Both: `logits_per_image`, `logits_per_text` and the symmetric InfoNCE `loss`.
    """
    if isinstance(config.vision, VisionTransformerDims):
        image_tokens = _vision_transformer(tensors, config.vision, pixel_values)
        patches = image_tokens[:, 1:]
    else:
        image_tokens = patches = _swin(tensors, config.vision, pixel_values)
    text_tokens = _text_transformer(tensors, config, input_ids)

    if config.codebook is None:
        image = _layer_norm(image_tokens[:, 0], tensors, "visual.ln_post") @ tensors["visual.proj"]
        end = text_tokens[torch.arange(len(text_tokens)), input_ids.argmax(-1)]  # the end token has the largest id
        text = _linear(end, tensors, "encode_text.text_projection")
        outputs = {"image_features": image, "text_features": text}
    else:
        temperature = config.temperature.at(last_iter)
        image, image_weights = _ground(tensors, "img_query_model", config.codebook, temperature, patches, None)
        text, text_weights = _ground(
            tensors, "txt_query_model", config.codebook, temperature, text_tokens, attention_mask
        )
        outputs = {
            "patch_features": patches,
            "token_features": text_tokens,
            "image_fdt_features": image,
            "text_fdt_features": text,
            "image_fdt_weights": image_weights,
            "text_fdt_weights": text_weights,
        }

    image, text = (x / x.norm(dim=-1, keepdim=True) for x in (image, text))
    logits = image @ text.T * tensors["logit_scale"].exp().clamp(max=100)
    match = torch.arange(len(logits))
    loss = -(logits.log_softmax(1)[match, match] + logits.log_softmax(0)[match, match]).mean() / 2
    return {**outputs, "logits_per_image": logits, "logits_per_text": logits.T, "loss": loss}
