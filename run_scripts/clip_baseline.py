# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""CLIP, trained as FDT is: the baseline of the paper."""

from typing import Any

import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel

from modeling_fdt import FDTConfig, FDTOutput
from modeling_fdt.modeling_fdt import contrastive_loss


class CLIPBaseline(CLIPModel):
    """transformers' CLIPModel that returns what a trainer of FDT reads. What it saves loads as a CLIPModel."""

    accepts_loss_kwargs = False

    def forward(
        self,
        input_ids: torch.LongTensor,
        pixel_values: torch.FloatTensor,
        attention_mask: torch.Tensor | None = None,
        return_loss: bool = True,
        **kwargs: Any,
    ) -> FDTOutput:
        """Embed pairs; the loss is that of this process's pairs, as evaluation needs it."""
        outputs = super().forward(input_ids, pixel_values, attention_mask, return_loss=False, **kwargs)
        loss = contrastive_loss(outputs.logits_per_image) if return_loss else None
        return FDTOutput(loss=loss, image_embeds=outputs.image_embeds, text_embeds=outputs.text_embeds)


def build_clip(
    vision_config: dict | None = None,
    text_config: dict | None = None,
    projection_dim: int = 512,
    freeze_patch_embedding: bool = False,
    **unknown: Any,
) -> CLIPBaseline:
    """A new CLIP with the vocabulary of FDT.

    Args:
        vision_config, text_config: fields of CLIP's towers, by default those of ViT-B/32.
        projection_dim: size of the embeddings.
        freeze_patch_embedding: whether the patch embedding stays at its random start, as in the original.

    Raises:
        ValueError: a field is unknown.
    """
    if unknown:
        raise ValueError(f"model_config of model_type 'clip' has no field {sorted(unknown)}")
    # FDTConfig refuses unknown fields of the towers, which CLIPConfig does not, and knows the vocabulary.
    towers = FDTConfig(vision_config=vision_config, text_config=text_config)
    for tower in (towers.vision_config, towers.text_config):
        if not tower.model_type.startswith("clip_"):
            raise ValueError(f"model_config of model_type 'clip' takes CLIP's towers, got {tower.model_type!r}")
    config = CLIPConfig(
        vision_config=towers.vision_config.to_dict(),
        text_config=towers.text_config.to_dict(),
        projection_dim=projection_dim,
    )
    model = CLIPBaseline(config)
    _patch_embedding(model).requires_grad_(not freeze_patch_embedding)
    return model


def _patch_embedding(model: CLIPModel) -> nn.Module:
    return next(module for module in model.vision_model.modules() if isinstance(module, nn.Conv2d))
