# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""The original's configuration and tensors of a transformers model."""

import math
from typing import Any

import torch
from transformers import PreTrainedModel

from modeling_fdt import FDTModel

from .key_map import TEXT_PROJECTION_BIAS, key_map, to_original
from .original_config import SWIN_BASE, OriginalConfig, parse_original_config
from .to_transformers import NEUTRAL_PARAMETERS, model_config


# Fields of configurations that do not change what a trained model computes.
_IRRELEVANT = {
    *("_name_or_path", "architectures", "auto_map", "dtype", "transformers_version", "model_type"),
    *("attention_dropout", "attention_probs_dropout_prob", "drop_path_rate", "hidden_dropout_prob"),
    *("encoder_stride", "initializer_factor", "initializer_range", "logit_scale_init_value"),
    *("freeze_patch_embedding", "id2label", "label2id", "num_labels", "problem_type"),
}


def original_config_of(model: PreTrainedModel) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    The original's configuration of a transformers model.

    Args:
        model: an FDTModel or a CLIPModel.

    Returns:
        What belongs into `config.json`, and Swin's dimensions in the form of the original's file (the original's own
        for other towers).

    Raises:
        ValueError: the model has something that the original cannot express.
    """
    config, is_fdt = model.config, isinstance(model, FDTModel)
    vision, text = config.vision_config, config.text_config
    is_swin = vision.model_type == "swinv2"
    if vision.model_type not in ("clip_vision_model", "swinv2") or text.model_type != "clip_text_model":
        raise ValueError(
            "`model` must have the original's towers, CLIP's or for images Swin v2; got "
            f"{vision.model_type} and {text.model_type}"
        )
    swin = SWIN_BASE
    embed_dim = config.projection_dim
    if is_swin:
        model_type, image_encode = "clip_fdt_swinB_v2", {"embed_dim": embed_dim}
        swin = {
            "FUSED_LAYERNORM": False,
            "DATA": {"IMG_SIZE": vision.image_size},
            "MODEL": {
                **{"TYPE": "swinv2", "NAME": "swinv2", "NUM_CLASSES": embed_dim, "USE_CHECKPOINT": False},
                **{"DROP_RATE": vision.hidden_dropout_prob, "DROP_PATH_RATE": vision.drop_path_rate},
                "SWINV2": {
                    "EMBED_DIM": vision.embed_dim,
                    "DEPTHS": list(vision.depths),
                    "NUM_HEADS": list(vision.num_heads),
                    "WINDOW_SIZE": vision.window_size,
                    "PATCH_SIZE": vision.patch_size,
                    "MLP_RATIO": vision.mlp_ratio,
                    "QKV_BIAS": vision.qkv_bias,
                    "APE": vision.use_absolute_embeddings,
                    "PATCH_NORM": True,
                    "PRETRAINED_WINDOW_SIZES": list(vision.pretrained_window_sizes),
                },
            },
        }
    else:
        model_type = ("clip_fdt_vitb" if is_fdt else "clip_vitb") + ("32" if vision.patch_size == 32 else "16")
        image_encode = {
            "embed_dim": embed_dim,
            "layers": vision.num_hidden_layers,
            "heads": vision.num_attention_heads,
            "width": vision.hidden_size,
            "patch_size": vision.patch_size,
            "input_resolution": vision.image_size,
        }
    kwargs = {
        "image_encode": image_encode,
        "text_encode": {
            "bpe_path": "text_info/bpe_simple_vocab_16e6.txt.gz",
            "text_encode_type": "Transformer",
            "text_model_utils": {"random": False, "freeze": False},
            "embed_dim": embed_dim,
            "context_length": text.max_position_embeddings,
            "transformer_width": text.hidden_size,
            "transformer_heads": text.num_attention_heads,
            "transformer_layers": text.num_hidden_layers,
        },
    }
    raw: dict[str, Any] = {"model": {"type": model_type, "kwargs": kwargs}}
    if is_fdt:
        kwargs["fdt"] = {
            "sd_temperature": config.grounding_temperature,
            "att_func_type": config.grounding_activation,
            "pool_type": config.token_pooling,
            "use_allgather": True,
            "sd_num": config.codebook_size,
            "sd_dim": config.codebook_dim,
            "raw_img_ft_dim": vision.hidden_size,
            "raw_txt_ft_dim": text.hidden_size,
        }
        # A factor of 1 keeps the temperature where it is at every training step.
        raw["t_decay"] = {
            "org_t": config.grounding_temperature,
            "sd_T_decay_iter": 1,
            "sd_T_decay_w": 1,
            "sd_T_min": 0,
        }
    else:
        kwargs["clip"] = {"use_allgather": True}
    _refuse_what_is_lost(model, parse_original_config(raw, swin))
    return raw, swin


def _refuse_what_is_lost(model: PreTrainedModel, config: OriginalConfig) -> None:
    """What the original would make of its configuration must be the model's own configuration."""
    rebuilt = model_config(config, last_iter=0).to_dict()
    own = model.config.to_dict()
    lost = []
    for section in ("", "vision_config", "text_config"):
        ours, theirs = (whole[section] if section else whole for whole in (own, rebuilt))
        ignored = _IRRELEVANT | ({"vision_config", "text_config"} if not section else {"projection_dim"})
        for name in sorted(set(ours) & set(theirs) - ignored):
            if ours[name] != theirs[name] and not _is_close(ours[name], theirs[name]):
                lost.append(f"{section + '.' if section else ''}{name}: {ours[name]!r} here, {theirs[name]!r} there")
    if lost:
        raise ValueError("the original cannot express this model:\n  " + "\n  ".join(lost))


def _is_close(a: Any, b: Any) -> bool:
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return list(a) == list(b)
    return isinstance(a, float) and isinstance(b, float) and math.isclose(a, b, rel_tol=1e-6)


def original_tensors(model: PreTrainedModel, config: OriginalConfig) -> dict[str, torch.Tensor]:
    """
    The parameters of a transformers model by the original's names.

    Args:
        model: an FDTModel or a CLIPModel.
        config: its configuration in the original's terms.

    Raises:
        ValueError: a parameter has no place in the original.
    """
    parameters = model.state_dict()
    entries = key_map(config)
    unmapped = set(parameters) - {name for entry in entries for name in entry.ours}
    for name in sorted(unmapped):
        if name not in NEUTRAL_PARAMETERS or not torch.all(parameters[name] == NEUTRAL_PARAMETERS[name]):
            raise ValueError(f"the original cannot express this model: nothing maps the parameter {name}")
    tensors = to_original(parameters, entries)
    if config.codebook is None:
        # transformers' CLIPModel has no bias here; without it the original would start from a random one.
        tensors[TEXT_PROJECTION_BIAS] = torch.zeros(config.embed_dim)
    return tensors
