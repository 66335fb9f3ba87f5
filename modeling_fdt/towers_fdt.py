# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""What FDT must know of the towers, which are transformers' own models."""

import inspect
import re
from typing import Any

import torch
import transformers
from torch import nn
from transformers import MODEL_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel


# Parameters that no token feature depends on: they serve pooling, masking, or inputs that FDT does not give. They
# never receive a gradient, and a trainable parameter without one stops DistributedDataParallel
# (tests/test_towers.py::test_every_trained_parameter_gets_a_gradient).
_UNUSED_IN_ANY_TOWER = r"^pooler\.|mask_token$"
_UNUSED_PARAMETERS = {
    "aimv2_vision_model": r"^head\.",
    "altclip_vision_model": r"^post_layernorm\.",
    "blip_text_model": r"\.crossattention\.",
    "chinese_clip_vision_model": r"^post_layernorm\.",
    "clip_vision_model": r"^post_layernorm\.",
    "convnext": r"^layernorm\.",
    "convnextv2": r"^layernorm\.",
    "esm": r"^contact_head\.",
    "longformer": r"_global\.",
    "luke": r"^entity_embeddings\.|\.(w2e|e2w|e2e)_query\.",
    "markuplm": r"\.xpath_unitseq2_embeddings\.",
    "metaclip_2_vision_model": r"^post_layernorm\.",
    "mlcd": r"^post_layernorm\.",
    "mlcd_vision_model": r"^post_layernorm\.",
    "siglip2_text_model": r"^head\.",
    "siglip_text_model": r"^head\.",
    "siglip_vision_model": r"^head\.",
    # Official: tokens of Swin are grounded before its last norm; kept for checkpoint parity. The norm that
    # transformers applies to them stays neutral, and the query projection normalises again (tests/test_conversion.py).
    "swinv2": r"^layernorm\.",
    "timm_wrapper": r"^timm_model\.(attn_pool|fc_norm|head)\.",
}

# Of CLIP's text tower, to which the original pads every caption.
ORIGINAL_CONTEXT_LENGTH = 77

# Text towers that were trained without an attention mask on captions padded to the context: with a mask, or without
# that padding, their token features are others than those they learnt.
TYPES_TRAINED_WITH_PADDING = {"siglip_text_model", "siglip2_text_model"}

# Text towers that count positions from `pad_token_id + 1`: so many of `max_position_embeddings` are never used.
_TYPES_WITH_POSITION_OFFSET = {
    *("altclip_text_model", "camembert", "clap_text_model", "data2vec-text", "esm", "ibert", "lilt", "longformer"),
    *("luke", "markuplm", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
}

# The field with the size of token features, where it is neither `hidden_size` nor the last of `hidden_sizes`.
_FEATURE_SIZE_FIELDS = {
    "altclip_text_model": "project_dim",
    "mobilevit": "neck_hidden_sizes",
    "sam_vision_model": "output_channels",
}

# Image towers whose tokens are not the patches of one image in their order, by type or by a field of such towers.
_OBSTACLES_BY_TYPE = {
    "pixtral": "it joins the patches of all images into one sequence",
    "vit_mae": "it drops random patches, in evaluation too",
}
_OBSTACLES_OF_TEXT = {
    # Under sdpa its mask is None where no caption is padded, and its attention, which is not causal by itself, then is
    # not causal at all.
    "aimv2_text_model": "what it says of a caption depends on whether another of the batch is longer",
}
_OBSTACLES_BY_FIELD = {
    "num_detection_tokens": "it puts detection tokens behind the patches",
    "num_frames": "it takes videos",
    "num_queries": "its tokens stand for objects, not for patches",
}


# Image towers whose configuration lacks what FDT must know: the built tower tells, and its configuration keeps it.
_TYPES_THAT_TELL_WHEN_BUILT = {"efficientnet", "mobilenet_v1", "mobilenet_v2", "timm_wrapper"}


def is_unused_parameter(config: PreTrainedConfig, name: str) -> bool:
    """Whether a tower's parameter is one that no token feature depends on; `name` is the tower's own for it."""
    patterns = (_UNUSED_IN_ANY_TOWER, _UNUSED_PARAMETERS.get(config.model_type))
    return any(pattern is not None and re.search(pattern, name) for pattern in patterns)


def get_hidden_size(config: PreTrainedConfig) -> int:
    """The size of a built tower's token features; of a convolutional tower that of its last stage."""
    field = _FEATURE_SIZE_FIELDS.get(config.model_type, "hidden_size")
    size = getattr(config, field if hasattr(config, field) else "hidden_sizes")
    return size if isinstance(size, int) else size[-1]


def get_patch_size(config: PreTrainedConfig) -> tuple[int, int]:
    """
    Height and width in pixels of an image tower's patches, those of the first layer.

    Raises:
        ValueError: the tower has no patches.
    """
    if config.model_type == "dinov3_convnext":
        # Its last feature map as a sequence, behind a pooled token.
        return (2 ** (len(config.hidden_sizes) + 1),) * 2
    if not hasattr(config, "patch_size"):
        raise ValueError(
            f"A {config.model_type} tower gives a sequence of tokens, but its configuration no `patch_size`."
        )
    patch_size = config.patch_size
    return (patch_size, patch_size) if isinstance(patch_size, int) else tuple(patch_size)


def get_context_length(config: PreTrainedConfig) -> int:
    """The longest input of a text tower, in tokens."""
    offset = config.pad_token_id + 1 if config.model_type in _TYPES_WITH_POSITION_OFFSET else 0
    return config.max_position_embeddings - offset


def check_tower_config(config: PreTrainedConfig, half: str) -> None:
    """
    Refuse a configuration whose model FDT cannot ground.

    Args:
        config (`PreTrainedConfig`): the tower's.
        half (`str`): `"vision_config"` or `"text_config"`.

    Raises:
        ValueError: the model takes other inputs than images (captions), or gives no features of patches (tokens).
    """
    find_obstacle = _find_obstacle_of_vision if half == "vision_config" else _find_obstacle_of_text
    obstacle = f"give its `{half}`" if hasattr(config, half) else find_obstacle(config)
    if obstacle is not None:
        kind = "an image" if half == "vision_config" else "a text"
        raise ValueError(
            f"`{half}` must be the configuration of {kind} tower, "
            f"got {type(config).__name__} ({config.model_type}): {obstacle}."
        )


def _find_obstacle_of_vision(config: PreTrainedConfig) -> str | None:
    by_field = (reason for field, reason in _OBSTACLES_BY_FIELD.items() if hasattr(config, field))
    obstacle = _OBSTACLES_BY_TYPE.get(config.model_type) or next(by_field, None)
    return obstacle or _find_other_inputs(config, "pixel_values") or _find_missing_field(config)


def _find_obstacle_of_text(config: PreTrainedConfig) -> str | None:
    obstacle = _OBSTACLES_OF_TEXT.get(config.model_type)
    obstacle = obstacle or _find_other_inputs(config, "input_ids") or _find_missing_field(config)
    if obstacle is not None:
        return obstacle
    length = getattr(config, "max_position_embeddings", None)
    if length is None or length < 1:
        return f"its `max_position_embeddings` must be an integer above 0, got {length}"
    if config.model_type in _TYPES_WITH_POSITION_OFFSET and config.pad_token_id is None:
        return "it needs a `pad_token_id`, from which it counts positions"
    return None


def _find_other_inputs(config: PreTrainedConfig, own: str) -> str | None:
    """What a tower's model takes besides its own modality, in words; or that it does not take that."""
    tower_class = get_tower_class(config)
    parameters = inspect.signature(tower_class.forward).parameters
    if own not in parameters:
        return f"{tower_class.__name__} does not take `{own}`"
    needed = {
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
    }
    of_other_modalities = {"pixel_values", "input_ids", "decoder_input_ids", "input_features", "pixel_values_videos"}
    others = sorted((needed | of_other_modalities & set(parameters)) - {"self", own, "attention_mask"})
    return f"{tower_class.__name__} takes {', '.join(others)} besides {own}" if others else None


def _find_missing_field(config: PreTrainedConfig) -> str | None:
    if config.model_type in _TYPES_THAT_TELL_WHEN_BUILT:
        if (getattr(config, "model_args", None) or {}).get("features_only"):
            return "`features_only` in its `model_args` gives several feature maps, FDT grounds one"
        return None
    has_size = hasattr(config, "hidden_size") or hasattr(config, "hidden_sizes")
    return None if has_size else "it has neither `hidden_size` nor `hidden_sizes`"


def put_channels_first(config: PreTrainedConfig, tower_output: Any) -> None:
    """Turn the feature map of a timm tower of which channels come last (Swin) into the form that all others have."""
    if getattr(config, "output_fmt", None) == "NHWC":
        tower_output.last_hidden_state = tower_output.last_hidden_state.permute(0, 3, 1, 2)


def check_token_features(config: PreTrainedConfig, tower_output: Any) -> None:
    """
    Refuse an output that cannot be grounded; `check_tower_config` cannot foresee all.

    Raises:
        ValueError: `last_hidden_state` is no sequence of tokens, and no feature map, of the tower's hidden size.
    """
    features = tower_output.get("last_hidden_state")
    hidden_size = get_hidden_size(config)
    shape = None if features is None else tuple(features.shape)
    is_map = shape is not None and len(shape) == 4
    if shape is None or len(shape) not in (3, 4) or shape[1 if is_map else 2] != hidden_size:
        raise ValueError(
            f"A {config.model_type} tower must give a `last_hidden_state` of shape (batch_size, num_tokens, "
            f"{hidden_size}) or (batch_size, {hidden_size}, height, width), got {shape}."
        )


def get_tower_class(config: PreTrainedConfig) -> Any:
    """
    The model class of a tower.

    Raises:
        ValueError: transformers has none.
    """
    # Some halves of two-tower models are not registered with AutoModel, but all are public names of transformers
    # (tests/test_towers.py::test_towers_that_automodel_does_not_know).
    by_name = getattr(transformers, type(config).__name__.removesuffix("Config") + "Model", None)
    tower_class = MODEL_MAPPING.get(type(config), by_name)
    if isinstance(tower_class, tuple | list):
        tower_class = tower_class[0]
    if tower_class is None:
        raise ValueError(f"transformers has no model for the tower configuration {type(config).__name__}.")
    return tower_class


def build_tower(config: PreTrainedConfig) -> PreTrainedModel:
    """
    A tower, not in the type that its own checkpoint had, but in that of the whole model. What FDT must know of it and
    `config` does not tell is added there, so that a saved configuration tells it.

    Raises:
        ValueError: `config` tells otherwise than the tower.
    """
    # Private, but how transformers' own two-tower models build theirs: it writes the type into the tower's
    # configuration (tests/test_towers.py::test_towers_are_built_in_the_type_of_the_model).
    tower = get_tower_class(config)._from_config(config, dtype=torch.get_default_dtype())
    if config.model_type in _TYPES_THAT_TELL_WHEN_BUILT:
        ask = _ask_timm if config.model_type == "timm_wrapper" else _ask_last_convolution
        for name, value in ask(tower).items():
            if getattr(config, name, value) != value:
                raise ValueError(
                    f"the configuration of a {config.model_type} tower has {name}={getattr(config, name)!r}, but the "
                    f"tower {value!r}."
                )
            setattr(config, name, value)
    return tower


def _ask_last_convolution(tower: nn.Module) -> dict[str, int]:
    # Modules are registered in the order in which a tower uses them.
    convolutions = [module for module in tower.modules() if isinstance(module, nn.Conv2d)]
    return {"hidden_size": convolutions[-1].out_channels}


def _ask_timm(tower: Any) -> dict[str, Any]:
    """What a timm model says of its features, by the names of transformers' configurations."""
    model, arguments = tower.timm_model, tower.config.model_args or {}
    told = {
        "hidden_size": model.num_features,
        "num_channels": arguments.get("in_chans", model.pretrained_cfg["input_size"][0]),
        "output_fmt": getattr(model, "output_fmt", "NCHW"),
    }
    patch_embed = getattr(model, "patch_embed", None)
    # A feature map has no need of the size of patches, and takes images of any size.
    for name, source in (("patch_size", "patch_size"), ("image_size", "img_size")):
        size = getattr(patch_embed, source, None)
        if size is not None:
            height, width = size
            told[name] = height if height == width else [height, width]
    return told


def distribute_sdpa(config: PreTrainedConfig) -> dict[str, str]:
    """
    What `attn_implementation="sdpa"`, asked of a whole model, means for its parts: a tower that lacks it is eager.

    Args:
        config (`PreTrainedConfig`): the whole model's.
    """
    # transformers says only in a private word what a class can compute
    # (tests/test_towers.py::test_sdpa_where_a_tower_has_it).
    has_sdpa = {half: get_tower_class(getattr(config, half))._supports_sdpa for half in config.sub_configs}
    return {"": "sdpa", **{half: "sdpa" if has_it else "eager" for half, has_it in has_sdpa.items()}}


# What says where a checkpoint is found; its configuration is found there too.
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def load_tower(model: str | PreTrainedModel, half: str, **options) -> PreTrainedModel:
    """
    A pretrained tower.

    Args:
        model (`str` or `PreTrainedModel`): a name on the Hub, a folder, or a loaded model that is or holds the tower.
        half (`str`): `"vision_config"` or `"text_config"`, which of a checkpoint with two towers is taken.
        options: what `from_pretrained` takes, for a name or a folder.

    Raises:
        ValueError: the checkpoint lacks weights of the tower, the loaded model does not hold one, or it is given
            together with options.
    """
    tower_name = half.removesuffix("_config")
    if isinstance(model, PreTrainedModel):
        if options:
            raise ValueError(
                f"{sorted(f'{tower_name}_{name}' for name in options)} say how a {tower_name} tower is loaded, but "
                f"`{tower_name}_model` is a loaded {type(model).__name__}."
            )
        return _find_tower(model, half)
    hub_options = {name: options[name] for name in _HUB_OPTIONS if name in options}
    config = options.pop("config", None) or AutoConfig.from_pretrained(model, **hub_options)
    config = getattr(config, half, config)
    tower, report = get_tower_class(config).from_pretrained(model, config=config, output_loading_info=True, **options)
    missing = sorted(name for name in report["missing_keys"] if not is_unused_parameter(config, name))
    if missing:
        raise ValueError(f"{model!r} lacks weights of its {tower_name} tower: {missing[:5]}, ...")
    return tower


def _find_tower(model: PreTrainedModel, half: str) -> PreTrainedModel:
    tower_class = get_tower_class(getattr(model.config, half, model.config))
    # A model with a head holds its base model, one of two towers both of them.
    tower = next((module for module in model.modules() if isinstance(module, tower_class)), None)
    if tower is None:
        raise ValueError(
            f"`{half.removesuffix('_config')}_model` must be or hold a {tower_class.__name__}, "
            f"got a {type(model).__name__}."
        )
    return tower


def copy_weights(source: PreTrainedModel, target: PreTrainedModel) -> None:
    """Give one tower the weights of another; what only the target has must be without effect (BERT's pooler)."""
    optional = {
        name: tensor for name, tensor in target.state_dict().items() if is_unused_parameter(target.config, name)
    }
    target.load_state_dict({**optional, **source.state_dict()})
