# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Configuration of FDT models."""

import dataclasses
import difflib
import math
import numbers
from collections.abc import Callable
from typing import Any, ClassVar

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from .towers_fdt import check_tower_config


# What completes a tower's `dict` without `model_type`. The vocabulary is the original's: CLIP's byte-pair table,
# `<|mask|>`, start and end token; padding shares id 0 with `!`.
_TOWER_DEFAULTS: dict[str, dict[str, Any]] = {
    "vision_config": {"model_type": "clip_vision_model"},
    "text_config": {
        **{"model_type": "clip_text_model", "vocab_size": 49409},
        **{"pad_token_id": 0, "bos_token_id": 49407, "eos_token_id": 49408},
    },
}

# Where the Auto classes find their class when a model's folder or repository brings this code along.
_AUTO_MAP = {
    "AutoConfig": "configuration_fdt.FDTConfig",
    "AutoModel": "modeling_fdt.FDTModel",
    "AutoModelForImageClassification": "modeling_fdt.FDTForImageClassification",
    "AutoModelForTextEncoding": "modeling_fdt.FDTTextModel",
    "AutoModelForZeroShotImageClassification": "modeling_fdt.FDTModel",
}

# Fields that transformers takes any number for, and divides by or allocates later.
_SIZES = (
    *("hidden_size", "image_size", "intermediate_size", "num_attention_heads", "num_channels", "patch_size"),
    "vocab_size",
)

# Names that transformers itself reads from a configuration although they are fields of no class.
_TRANSFORMERS_NAMES = {
    *("attn_implementation", "auto_map", "experts_implementation", "gradient_checkpointing", "model_type"),
    *("name_or_path", "num_labels", "output_attentions", "per_layer_config", "quantization_config", "torch_dtype"),
}


def _to_python_number(value: Any) -> Any:
    """A number of numpy as the Python number that JSON knows; all else as it is."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _is_positive_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_finite_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _one_of(*choices: str) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value in choices, f"one of {list(choices)}"


def _refuse_unknown_names(names: Any, config_class: type[PreTrainedConfig], where: str) -> None:
    fields = {field.name for field in dataclasses.fields(config_class)}
    known = fields | set(config_class.attribute_map) | _TRANSFORMERS_NAMES
    for name in names:
        if name not in known and not name.startswith("_"):
            similar = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f" Did you mean `{similar[0]}`?" if similar else f" Its fields are {sorted(fields)}."
            raise ValueError(f"{where} has no field `{name}`.{hint}")


def _refuse_sizes_below_one(fields: dict[str, Any], where: str) -> None:
    for name in _SIZES:
        value = fields.get(name)
        if any(isinstance(size, int) and size < 1 for size in (value if isinstance(value, list | tuple) else [value])):
            raise ValueError(f"`{name}` of {where} must be above 0, got {value}.")


class FDTConfig(PreTrainedConfig):
    r"""
    Configuration of an FDT model: two towers, one shared codebook, and how tokens are grounded in it.

    Source: Chen et al., "Revisiting Multimodal Representation in Contrastive Learning: From Patch and Token Embeddings
    to Finite Discrete Tokens", CVPR 2023 (arXiv 2303.14865).

    Args:
        vision_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of the image tower: any transformers model that maps `pixel_values` to a sequence of patch
            tokens or to a feature map (CLIP, SigLIP, ViT, DINOv2, Swin, ResNet, ...). A `dict` without `model_type`
            means CLIP's. Defaults to CLIP's ViT-B/32.
        text_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of the text tower: any transformers model that maps `input_ids` to a sequence of tokens
            (CLIP, SigLIP, BERT, RoBERTa, ...). A `dict` without `model_type` means CLIP's, with the original FDT's
            vocabulary of 49,409 tokens. Defaults to CLIP's text tower.
        codebook_size (`int`, defaults to 16384):
            Number of codes (finite discrete tokens) that both modalities share.
        codebook_dim (`int`, defaults to 512):
            Size of a code, and of the embeddings. `projection_dim` is an alias.
        grounding_activation (`str`, defaults to `"sparsemax"`):
            What turns pooled scores into code weights: `"sparsemax"`, `"softmax"` or `"sigmoid"`.
        token_pooling (`str`, defaults to `"max"`):
            How the scores of one code at all tokens become one: `"max"`, `"mean"` or `"sum"`.
        grounding_temperature (`float`, defaults to 1000.0):
            What pooled scores are divided by before the activation; above 0. It goes together with the codebook's size
            and the towers' width: a low one collapses a fresh model to a single code, a high one activates all codes.
        padding_score (`str`, defaults to `"zero"`):
            `"zero"` counts every position between a caption's end and position 77 (of a text tower with a shorter
            context, its end) as a token of score 0, as the original does; `"ignore"` never counts padding. Either way
            a caption's embedding does not depend on how far it is padded.
        logit_scale_init_value (`float`, defaults to 2.6592):
            Natural logarithm of the factor on cosine similarities at the start.
        logit_scale_max (`float`, defaults to `log(100)`):
            Natural logarithm of the largest factor that the model applies, whatever `logit_scale` becomes.
        freeze_patch_embedding (`bool`, defaults to `False`):
            Whether the image tower's patch embedding stays as it is in training. The original freezes it at its random
            start.

    Raises:
        ValueError: a field is unknown, or its value is not allowed. A configuration that transformers wrote (it names
            `transformers_version`) may carry further fields, since another release may have written it.

    Example:

    ```python
    >>> from modeling_fdt import FDTConfig, FDTModel

    >>> model = FDTModel(FDTConfig.vit_b_32(codebook_size=8192))
    ```
    """

    model_type = "fdt"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}
    attribute_map = {"projection_dim": "codebook_dim"}
    # What Trainer gathers in evaluation are the embeddings, from which every metric follows.
    keys_to_ignore_at_inference = [
        *("logits_per_image", "logits_per_text", "image_code_weights", "text_code_weights"),
        *("vision_model_output", "text_model_output", "pooler_output"),
    ]

    _allowed_values: ClassVar[dict[str, tuple[Callable[[Any], bool], str]]] = {
        "codebook_size": (_is_positive_int, "an integer above 0"),
        "codebook_dim": (_is_positive_int, "an integer above 0"),
        "grounding_activation": _one_of("sparsemax", "softmax", "sigmoid"),
        "token_pooling": _one_of("max", "mean", "sum"),
        "grounding_temperature": (lambda value: _is_finite_number(value) and value > 0, "a finite number above 0"),
        "padding_score": _one_of("zero", "ignore"),
        "logit_scale_init_value": (_is_finite_number, "a finite number (a natural logarithm)"),
        "logit_scale_max": (_is_finite_number, "a finite number (a natural logarithm)"),
        "freeze_patch_embedding": (lambda value: isinstance(value, bool), "True or False"),
    }

    vision_config: Any = None  # a dict or None becomes a PreTrainedConfig
    text_config: Any = None
    codebook_size: int = 16384
    codebook_dim: int = 512
    grounding_activation: str = "sparsemax"
    token_pooling: str = "max"
    grounding_temperature: float = 1000.0
    padding_score: str = "zero"
    logit_scale_init_value: float = 2.6592
    logit_scale_max: float = math.log(100)
    freeze_patch_embedding: bool = False

    def __setattr__(self, name: str, value: Any) -> None:
        field = self.attribute_map.get(name, name)
        if field in self._allowed_values:
            value = _to_python_number(value)
            is_allowed, allowed = self._allowed_values[field]
            if not is_allowed(value):
                raise ValueError(f"`{name}` must be {allowed}, got {value!r}.")
        super().__setattr__(name, value)

    def __post_init__(self, **kwargs):
        is_hand_written = self.transformers_version is None
        if is_hand_written:
            _refuse_unknown_names(kwargs, type(self), type(self).__name__)
        for name in self.sub_configs:
            setattr(self, name, self._build_tower_config(name, is_hand_written))
        # AutoModel, which has several classes to choose from, goes through this list and does not expect None.
        self.architectures = self.architectures or []
        super().__post_init__(**{"auto_map": dict(_AUTO_MAP), **kwargs})

    def _build_tower_config(self, name: str, is_hand_written: bool) -> PreTrainedConfig:
        config = getattr(self, name)
        if not isinstance(config, dict | PreTrainedConfig | None):
            raise ValueError(f"`{name}` must be a configuration, a dict or None, got {config!r}.")
        _refuse_sizes_below_one(vars(config) if isinstance(config, PreTrainedConfig) else config or {}, f"`{name}`")
        if not isinstance(config, PreTrainedConfig):
            config = dict(config or {})
            if "model_type" not in config:
                config = {**_TOWER_DEFAULTS[name], **config}
            model_type = config.pop("model_type")
            if model_type not in CONFIG_MAPPING:
                raise ValueError(f"`{name}` has `model_type` {model_type!r}, which transformers does not know.")
            config_class = CONFIG_MAPPING[model_type]
            if is_hand_written:
                _refuse_unknown_names(config, config_class, f"`{name}` ({model_type})")
            try:
                config = config_class(**config)
            except StrictDataclassError as error:
                raise ValueError(f"`{name}` is refused by transformers. {error}") from error
        check_tower_config(config, name)
        return config

    @classmethod
    def vit_b_32(cls, **kwargs) -> "FDTConfig":
        """The paper's ViT-B/32 with CLIP's text tower; `kwargs` are fields of this class."""
        return cls(**kwargs)

    @classmethod
    def vit_b_16(cls, **kwargs) -> "FDTConfig":
        """The paper's ViT-B/16 with CLIP's text tower; `kwargs` are fields of this class."""
        return cls(vision_config={"patch_size": 16}, **kwargs)

    @classmethod
    def swin_b(cls, **kwargs) -> "FDTConfig":
        """The paper's Swin-B (Swin v2, window 7 at 224 pixels) with CLIP's text tower; `kwargs` are fields."""
        vision_config = {
            "model_type": "swinv2",
            "image_size": 224,
            "patch_size": 4,
            "embed_dim": 128,
            "depths": [2, 2, 18, 2],
            "num_heads": [4, 8, 16, 32],
            "window_size": 7,
        }
        return cls(vision_config=vision_config, **kwargs)


# Saved objects of these classes bring their code along, so that `trust_remote_code=True` loads them anywhere.
FDTConfig.register_for_auto_class()

__all__ = ["FDTConfig"]
