# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""The transformers model, and its processor, that compute what a checkpoint of the original computes."""

import logging
import math

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, PreTrainedModel, Swinv2Config

from modeling_fdt import FDTConfig, FDTImageProcessor, FDTModel, FDTProcessor, FDTTokenizer

from .command_line import reported_as
from .key_map import DECLIP_HEADS, DECLIP_QUEUE, TEXT_PROJECTION_BIAS, check_tensors, dropped_names, key_map, to_ours
from .original_checkpoint import OriginalCheckpoint
from .original_config import (
    END_TOKEN_ID,
    PADDING_TOKEN_ID,
    START_TOKEN_ID,
    VOCAB_SIZE,
    OriginalConfig,
    VisionTransformerDims,
)
from .weights import check_values


logger = logging.getLogger(__name__)

LOGIT_SCALE_MAX = math.log(100)  # natural logarithm; the original caps the factor at 100

# Official: Swin's tokens are grounded before the final norm, which transformers' Swinv2Model applies to the tokens it
# returns. With these values it only normalises, and the grounding's own layer norm, which comes next, makes that
# normalisation almost void: a token of variance v is scaled by sqrt((v + e) / (v + e v + e^2)), e = 1e-5.
NEUTRAL_PARAMETERS = {"vision_tower.layernorm.weight": 1.0, "vision_tower.layernorm.bias": 0.0}


def text_tower_config(config: OriginalConfig) -> CLIPTextConfig:
    """The text tower in transformers' terms."""
    return CLIPTextConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=config.text.width,
        intermediate_size=4 * config.text.width,
        num_hidden_layers=config.text.layers,
        num_attention_heads=config.text.heads,
        max_position_embeddings=config.text.context_length,
        projection_dim=config.embed_dim,
        pad_token_id=PADDING_TOKEN_ID,
        bos_token_id=START_TOKEN_ID,
        eos_token_id=END_TOKEN_ID,
    )


def vision_tower_config(config: OriginalConfig) -> CLIPVisionConfig | Swinv2Config:
    """The image tower in transformers' terms."""
    dims = config.vision
    if isinstance(dims, VisionTransformerDims):
        return CLIPVisionConfig(
            hidden_size=dims.width,
            intermediate_size=4 * dims.width,
            num_hidden_layers=dims.layers,
            num_attention_heads=dims.heads,
            image_size=dims.input_resolution,
            patch_size=dims.patch_size,
            projection_dim=config.embed_dim,
        )
    return Swinv2Config(
        image_size=dims.input_resolution,
        patch_size=dims.patch_size,
        embed_dim=dims.embed_dim,
        depths=list(dims.depths),
        num_heads=list(dims.num_heads),
        window_size=dims.window_size,
        mlp_ratio=dims.mlp_ratio,
        pretrained_window_sizes=[0] * len(dims.depths),
    )


def model_config(config: OriginalConfig, last_iter: int) -> FDTConfig | CLIPConfig:
    """
    The whole model in transformers' terms.

    Args:
        config: the run's configuration.
        last_iter: the training step, which sets the grounding temperature.
    """
    towers = {"vision_config": vision_tower_config(config), "text_config": text_tower_config(config)}
    if config.codebook is None:
        return CLIPConfig(**towers, projection_dim=config.embed_dim)
    return FDTConfig(
        **towers,
        codebook_size=config.codebook.num_codes,
        codebook_dim=config.codebook.dim,
        grounding_activation=config.codebook.activation,
        token_pooling=config.codebook.pooling,
        grounding_temperature=config.temperature.at(last_iter),
        padding_score="zero",
        logit_scale_max=LOGIT_SCALE_MAX,
        # Official: the patch embedding's convolution stays at its random start; Swin's is trained.
        freeze_patch_embedding=isinstance(config.vision, VisionTransformerDims),
    )


def fold_text_projection_bias(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Moves the bias of the CLIP baseline's text projection into the layer norm before it.

    transformers' CLIPModel has no such bias. The projection W of the normed tokens plus b is W(x + a) with W a = b, so
    a is added to the layer norm's bias. Computed in float64.

    Args:
        tensors: the checkpoint's tensors.

    Returns:
        The tensors without `encode_text.text_projection.bias`.

    Raises:
        ValueError: no a solves W a = b.
    """
    tensors = dict(tensors)
    bias = tensors.pop(TEXT_PROJECTION_BIAS)
    weight = tensors["encode_text.text_projection.weight"].double()
    if bias.shape != weight.shape[:1]:
        raise ValueError(
            f"`{TEXT_PROJECTION_BIAS}` must have the shape ({len(weight)},) of its weight's rows, "
            f"got {tuple(bias.shape)}"
        )
    bias = bias.double()
    shift = torch.linalg.lstsq(weight, bias[:, None], driver="gelsd").solution[:, 0]
    if not torch.allclose(weight @ shift, bias, rtol=0, atol=1e-6):
        raise ValueError(
            f"{TEXT_PROJECTION_BIAS} cannot be expressed: transformers' CLIPModel has no bias there, and the "
            f"projection {tuple(weight.shape)} does not reach it"
        )
    tensors["encode_text.ln_final.bias"] = (tensors["encode_text.ln_final.bias"].double() + shift).float()
    logger.info("folded %s into encode_text.ln_final.bias", TEXT_PROJECTION_BIAS)
    return tensors


def convert(checkpoint: OriginalCheckpoint, config: OriginalConfig) -> PreTrainedModel:
    """
    Builds the transformers model of a checkpoint.

    Args:
        checkpoint: the original's tensors and training step.
        config: the run's configuration.

    Returns:
        An FDTModel, or a CLIPModel for the CLIP baseline; float32, evaluation mode.

    Raises:
        ValueError: names or shapes of the checkpoint do not fit the configuration, or a value is damaged.
    """
    hf_config = model_config(config, checkpoint.last_iter)
    model_class = FDTModel if config.codebook else CLIPModel
    tensors, entries = checkpoint.tensors, key_map(config)
    dropped = dropped_names(tensors, config.model_type)
    folded = {TEXT_PROJECTION_BIAS: "folded"} if config.codebook is None and TEXT_PROJECTION_BIAS in tensors else {}
    # Names, shapes and values are checked before a model of any size is built.
    with reported_as("config: no model has these sizes"), torch.device("meta"):
        shapes = {name: value.shape for name, value in model_class(hf_config).state_dict().items()}
    check_tensors(tensors, entries, shapes, dropped | folded)
    check_values("checkpoint", tensors, [*(entry.original for entry in entries), *folded])
    if folded:
        tensors = fold_text_projection_bias(tensors)

    model = model_class(hf_config)
    parameters = model.state_dict()
    converted = to_ours(tensors, entries)
    if config.codebook is None:  # Official: the factor is capped at 100; CLIPModel has no cap.
        converted["logit_scale"] = converted["logit_scale"].clamp(max=LOGIT_SCALE_MAX)
    for name in NEUTRAL_PARAMETERS.keys() & parameters.keys():
        converted[name] = torch.full_like(parameters[name], NEUTRAL_PARAMETERS[name])
    model.load_state_dict(converted, strict=True)
    kept = [entry.original for entry in entries]
    for action, names in (("kept", kept), ("dropped", dropped)):
        logger.info("%s %d tensors, %s values", action, len(names), f"{sum(tensors[n].numel() for n in names):,}")
    in_training_state = {entry.original for entry in DECLIP_HEADS + DECLIP_QUEUE}
    for name, reason in dropped.items():
        if name not in in_training_state:
            logger.info("dropped %s: %s", name, reason)
    return model.eval()


def build_processor(config: OriginalConfig) -> FDTProcessor:
    """The original's evaluation images (ImageNet statistics; short side 8/7 of the crop, 256 for 224) and tokens."""
    side = config.vision.input_resolution
    image_processor = FDTImageProcessor(
        size={"shortest_edge": round(side * 256 / 224)}, crop_size={"height": side, "width": side}
    )
    tokenizer = FDTTokenizer(model_max_length=config.text.context_length)
    return FDTProcessor(image_processor=image_processor, tokenizer=tokenizer)
