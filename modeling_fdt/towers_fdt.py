# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""What FDT must know of the towers, which are transformers' own models."""

from typing import Any

import torch
import transformers
from transformers import MODEL_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel


# Parts of towers that serve other heads (pooling) or other objectives (masking). Grounding pools by itself, so they
# never receive a gradient, and a trainable parameter without one stops DistributedDataParallel.
# Official: tokens of Swin are grounded before its last norm; kept for checkpoint parity. The norm that transformers
# applies to them stays neutral, and the query projection normalises again (tests/test_conversion.py).
UNUSED_PARTS = {
    "clip_vision_model": "post_layernorm",
    "convnext": "layernorm",
    "convnextv2": "layernorm",
    "siglip_text_model": "head",
    "siglip_vision_model": "head",
    "swinv2": "layernorm",
}

# Text towers that were trained without an attention mask on captions padded to the context: with a mask, or without
# that padding, their token features are others than those they learnt.
TYPES_TRAINED_WITH_PADDING = {"siglip_text_model", "siglip2_text_model"}

# Text towers that count positions from `pad_token_id + 1`: so many of `max_position_embeddings` are never used.
_TYPES_WITH_POSITION_OFFSET = {
    *("camembert", "data2vec-text", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl"),
}


def get_hidden_size(config: PreTrainedConfig) -> int:
    """The size of a tower's token features; of a convolutional tower that of its last stage."""
    return config.hidden_size if hasattr(config, "hidden_size") else config.hidden_sizes[-1]


def get_context_length(config: PreTrainedConfig) -> int:
    """The longest input of a text tower, in tokens."""
    offset = config.pad_token_id + 1 if config.model_type in _TYPES_WITH_POSITION_OFFSET else 0
    return config.max_position_embeddings - offset


def get_tower_class(config: PreTrainedConfig) -> Any:
    """
    The model class of a tower.

    Raises:
        ValueError: transformers has none.
    """
    # Some halves of two-tower models (SigLIP's text model) are not registered with AutoModel.
    by_name = getattr(transformers, type(config).__name__.removesuffix("Config") + "Model", None)
    tower_class = MODEL_MAPPING.get(type(config), by_name)
    if tower_class is None:
        raise ValueError(f"transformers has no model for the tower configuration {type(config).__name__}.")
    return tower_class


def build_tower(config: PreTrainedConfig) -> PreTrainedModel:
    """A tower, not in the type that its own checkpoint had, but in that of the whole model."""
    return get_tower_class(config)._from_config(config, dtype=torch.get_default_dtype())


def load_tower(model: str | PreTrainedModel, half: str) -> PreTrainedModel:
    """
    A pretrained tower.

    Args:
        model (`str` or `PreTrainedModel`): a name on the Hub, a folder, or the tower itself.
        half (`str`): `"vision_config"` or `"text_config"`, which of a checkpoint with two towers is taken.

    Raises:
        ValueError: the checkpoint lacks weights of the tower.
    """
    if isinstance(model, PreTrainedModel):
        return model
    config = AutoConfig.from_pretrained(model)
    config = getattr(config, half, config)
    tower, report = get_tower_class(config).from_pretrained(model, config=config, output_loading_info=True)
    unused = ("pooler.", f"{UNUSED_PARTS.get(config.model_type)}.")
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(unused))
    if missing:
        raise ValueError(f"{model!r} lacks weights of its {half.removesuffix('_config')} tower: {missing[:5]}, ...")
    return tower
