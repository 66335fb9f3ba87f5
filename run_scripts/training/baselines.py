# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""What FDT is compared with: CLIP, and the same two towers pooled without a codebook."""

import math
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, CLIPConfig, CLIPModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils.generic import can_return_tuple

from modeling_fdt import FDTConfig, FDTGrounding, FDTModel, FDTTextModelOutput, FDTVisionModelOutput
from modeling_fdt.inputs_fdt import put_padding_last
from modeling_fdt.towers_fdt import get_hidden_size


def build_clip(
    vision_config: dict | None = None,
    text_config: dict | None = None,
    projection_dim: int = 512,
    freeze_patch_embedding: bool = False,
    **unknown: Any,
) -> CLIPModel:
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
    model = CLIPModel(config)
    _patch_embedding(model).requires_grad_(not freeze_patch_embedding)
    return model


def _patch_embedding(model: CLIPModel) -> nn.Module:
    return next(module for module in model.vision_model.modules() if isinstance(module, nn.Conv2d))


POOLINGS = ("tower", "max", "mean")


class ControlConfig(PreTrainedConfig):
    r"""
    Configuration of a [`ControlModel`].

    Args:
        vision_config, text_config (`PreTrainedConfig` or `dict`, *optional*): as in [`FDTConfig`].
        projection_dim (`int`, defaults to 512): size of the embeddings.
        pooling (`str`, defaults to `"tower"`):
            `"tower"` is CLIP: the pooled output of each tower (of a text tower that has none, such as ELECTRA, its
            first token) and a linear projection. `"max"` and `"mean"` are FDT without its codebook: the query
            projection of FDT at every token, pooled over the valid tokens.
        logit_scale_init_value, logit_scale_max (`float`): as in [`FDTConfig`].

    Raises:
        ValueError: a field is unknown, or its value is not allowed.
    """

    model_type = "fdt_control"
    sub_configs = FDTConfig.sub_configs
    attribute_map = {"codebook_dim": "projection_dim"}  # the name by which FDTGrounding reads it

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    projection_dim: int = 512
    pooling: str = "tower"
    logit_scale_init_value: float = 2.6592
    logit_scale_max: float = math.log(100)

    def __post_init__(self, **kwargs):
        if self.transformers_version is None and kwargs:
            raise ValueError(f"ControlConfig has no field {sorted(kwargs)}.")
        if self.pooling not in POOLINGS:
            raise ValueError(f"`pooling` must be one of {list(POOLINGS)}, got {self.pooling!r}.")
        # FDTConfig builds the towers' configurations, and refuses what it would refuse for FDT.
        like_fdt = FDTConfig(
            vision_config=self.vision_config,
            text_config=self.text_config,
            codebook_dim=self.projection_dim,
            logit_scale_init_value=self.logit_scale_init_value,
            logit_scale_max=self.logit_scale_max,
            transformers_version=self.transformers_version,
        )
        self.vision_config, self.text_config = like_fdt.vision_config, like_fdt.text_config
        super().__post_init__(**kwargs)


class ControlModel(PreTrainedModel):
    """Two towers with an embedding each and the loss of [`FDTModel`], without a codebook."""

    config: ControlConfig
    config_class = ControlConfig
    base_model_prefix = "control"
    input_modalities = ("image", "text")
    accepts_loss_kwargs = False

    # Loss, cap of the logit scale and choice of the patch tokens are not like FDT's but FDT's own.
    forward = FDTModel.forward
    _select_patches = FDTModel._select_patches
    capped_logit_scale = FDTModel.capped_logit_scale

    def __init__(self, config: ControlConfig):
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.text_tower = AutoModel.from_config(config.text_config)
        self.vision_projection = _build_projection(config, get_hidden_size(config.vision_config))
        self.text_projection = _build_projection(config, config.text_config.hidden_size)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # As in CLIP for its linear projections, as in FDT for its query projections.
        if isinstance(module, nn.Linear) and self.config.pooling == "tower":
            init.normal_(module.weight, std=module.in_features**-0.5)
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, ControlModel):
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)

    @can_return_tuple
    def get_image_features(self, pixel_values: torch.FloatTensor, **kwargs: Any) -> tuple | FDTVisionModelOutput:
        """Embed normalised pixels of shape (batch_size, 3, height, width); `pooler_output` are the embeddings."""
        output = self.vision_tower(pixel_values=pixel_values, **kwargs)
        if self.config.pooling == "tower":
            embeds = self.vision_projection(output.pooler_output.flatten(1))
        else:
            patches = self._select_patches(output.last_hidden_state, pixel_values)
            embeds = pool_tokens(self.vision_projection(patches), None, self.config.pooling)
        embeds = nn.functional.normalize(embeds, dim=-1)
        return FDTVisionModelOutput(
            last_hidden_state=output.last_hidden_state, pooler_output=embeds, image_embeds=embeds
        )

    @can_return_tuple
    def get_text_features(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple | FDTTextModelOutput:
        """Embed token ids of shape (batch_size, sequence_length); `pooler_output` are the embeddings."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **kwargs}
        if attention_mask is not None:
            inputs, _ = put_padding_last(inputs, attention_mask)
            attention_mask = inputs["attention_mask"]
        output = self.text_tower(**inputs)
        if self.config.pooling == "tower":
            pooled = output.get("pooler_output")
            embeds = self.text_projection(output.last_hidden_state[:, 0] if pooled is None else pooled)
        else:
            tokens = self.text_projection(output.last_hidden_state)
            embeds = pool_tokens(tokens, attention_mask, self.config.pooling)
        embeds = nn.functional.normalize(embeds, dim=-1)
        return FDTTextModelOutput(last_hidden_state=output.last_hidden_state, pooler_output=embeds, text_embeds=embeds)


def _build_projection(config: ControlConfig, hidden_size: int) -> nn.Module:
    if config.pooling == "tower":
        return nn.Linear(hidden_size, config.projection_dim, bias=False)
    return FDTGrounding(config, hidden_size).query_projection


def pool_tokens(tokens: torch.Tensor, attention_mask: torch.Tensor | None, pooling: str) -> torch.Tensor:
    """The largest or the mean value of every dimension over a row's valid tokens.

    Args:
        tokens: (batch_size, num_tokens, dim).
        attention_mask: (batch_size, num_tokens), 1 for valid tokens, at least one in each row; None: all are.
        pooling: "max" or "mean".

    Returns:
        (batch_size, dim); it does not depend on what stands at other positions.
    """
    is_valid = tokens.new_ones(tokens.shape[:2]) if attention_mask is None else attention_mask
    is_valid = is_valid.bool()[..., None]
    if pooling == "max":
        return tokens.masked_fill(~is_valid, -torch.inf).amax(dim=1)
    return tokens.masked_fill(~is_valid, 0).sum(dim=1) / is_valid.sum(dim=1)


AutoConfig.register(ControlConfig.model_type, ControlConfig)
AutoModel.register(ControlConfig, ControlModel)
