# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Does a converted folder compute what the original's checkpoint computes?"""

from pathlib import Path

import torch
from torch.nn.functional import normalize
from transformers import AutoModel

from .key_map import dropped_names
from .original_checkpoint import OriginalCheckpoint
from .original_config import END_TOKEN_ID, START_TOKEN_ID, OriginalConfig
from .original_forward import original_forward


_MODALITIES = ("image", "text")

# Largest difference allowed, as a share of the largest magnitude. Both sides run in float64, so these
# bounds are far above rounding; they leave room for tables that transformers' Swin v2 computes in float32 (1e-7) and
# for its last norm, which is applied twice (`convert_fdt_to_hf`, 5e-6).
TOLERANCES = {
    "image_code_weights": 1e-5,
    "text_code_weights": 1e-5,
    "image_embeds": 1e-5,
    "text_embeds": 1e-5,
    "logits_per_image": 1e-4,
    "loss": 1e-5,
}


def fixed_batch(config: OriginalConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    The same three images and captions every time: `pixel_values` (3, 3, resolution, resolution) in float64, and
    `input_ids` and `attention_mask` (3, context); one caption is empty and one fills the context.
    """
    generator = torch.Generator().manual_seed(0)
    context = config.text.context_length
    lengths = (2, min(12, context), context)
    side = config.vision.input_resolution
    pixel_values = torch.randn(len(lengths), 3, side, side, generator=generator, dtype=torch.float64)
    input_ids = torch.randint(1, START_TOKEN_ID - 1, (len(lengths), context), generator=generator)
    attention_mask = (torch.arange(context) < torch.tensor(lengths)[:, None]).long()
    input_ids[:, 0] = START_TOKEN_ID
    input_ids[torch.arange(len(lengths)), torch.tensor(lengths) - 1] = END_TOKEN_ID
    return pixel_values, input_ids * attention_mask, attention_mask


@torch.no_grad()
def verify(folder: Path, checkpoint: OriginalCheckpoint, config: OriginalConfig) -> dict[str, float]:
    """
    Loads a converted folder as a user would and compares it with the plain forward pass of the checkpoint's tensors.

    Args:
        folder: holds the transformers model.
        checkpoint: what it was converted from.
        config: the run's configuration.

    Returns:
        The largest difference of each output, as a share of its largest magnitude.

    Raises:
        ValueError: a difference exceeds its tolerance.
    """
    pixel_values, input_ids, attention_mask = fixed_batch(config)
    dropped = dropped_names(checkpoint.tensors, config.model_type)
    tensors = {name: tensor.double() for name, tensor in checkpoint.tensors.items() if name not in dropped}
    reference = original_forward(tensors, config, checkpoint.last_iter, pixel_values, input_ids, attention_mask)
    del tensors
    infix = "_fdt" if config.codebook else ""
    expected = {f"{modality}_embeds": normalize(reference[f"{modality}{infix}_features"]) for modality in _MODALITIES}
    if config.codebook:
        expected |= {f"{modality}_code_weights": reference[f"{modality}_fdt_weights"] for modality in _MODALITIES}
    expected |= {name: reference[name] for name in ("logits_per_image", "loss")}

    model = AutoModel.from_pretrained(folder, dtype=torch.float64)
    actual = model(pixel_values=pixel_values, input_ids=input_ids, attention_mask=attention_mask, return_loss=True)
    differences = {
        name: ((actual[name] - value).abs().max() / value.abs().max()).item() for name, value in expected.items()
    }
    failed = {name: value for name, value in differences.items() if not value <= TOLERANCES[name]}
    if failed:
        listing = ", ".join(f"{name} {value:.2g} (allowed {TOLERANCES[name]:g})" for name, value in failed.items())
        raise ValueError(
            "verification failed: the converted model does not compute what the checkpoint computes; largest "
            f"differences as a share of the largest magnitude: {listing}"
        )
    return differences
