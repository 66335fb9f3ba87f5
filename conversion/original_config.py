# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""The configuration that the original implementation saves beside its checkpoints, read strictly.

Source: https://github.com/yuxiaochen1103/FDT at commit ccf6983, the constructors under `prototype/model`. Defaults
here are the defaults there; a field that those constructors do not take is an error here as it is there.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .strict_config import MOST_LAYERS, Section, read_mapping


VOCAB_SIZE = 49409  # CLIP's byte pairs, `<|mask|>`, the start and the end token
START_TOKEN_ID, END_TOKEN_ID, PADDING_TOKEN_ID = 49407, 49408, 0

LARGEST_STEP = 2**63 - 1  # of training
# Far above every published model; no tensor tells the size of Swin's images and windows.
_LARGEST_SIDE = 4096  # of an image, in pixels
_LARGEST_WINDOW = 64  # in tokens


@dataclass(frozen=True)
class ModelType:
    """What one of the original's model types fixes: the image tower and the section that describes the codebook."""

    vision: str  # "vit" or "swin"
    patch_size: int
    fdt_section: str | None  # None: the CLIP baseline, which has no codebook


MODEL_TYPES = {
    "clip_fdt_vitb32": ModelType("vit", 32, "fdt"),
    "clip_fdt_vitb16": ModelType("vit", 16, "fdt"),
    "clip_fdt_swinB_v2": ModelType("swin", 4, "fdt"),
    "declip_fdt_vitb32": ModelType("vit", 32, "clip"),
    "clip_vitb32": ModelType("vit", 32, None),
    "clip_vitb16": ModelType("vit", 16, None),
}

# The original reads Swin's dimensions from a file in its tree, `swinv2_base_patch4_window7_224.yaml`; its contents:
SWIN_BASE = {
    "DATA": {"IMG_SIZE": 224},
    "MODEL": {
        "TYPE": "swinv2",
        "NUM_CLASSES": 512,
        "SWINV2": {
            "EMBED_DIM": 128,
            "DEPTHS": [2, 2, 18, 2],
            "NUM_HEADS": [4, 8, 16, 32],
            "WINDOW_SIZE": 7,
            "PATCH_SIZE": 4,
            "MLP_RATIO": 4.0,
            "QKV_BIAS": True,
            "APE": False,
            "PATCH_NORM": True,
            "PRETRAINED_WINDOW_SIZES": [0, 0, 0, 0],
        },
    },
}


@dataclass(frozen=True)
class VisionTransformerDims:
    """CLIP's image tower: sizes in channels, pixels (`input_resolution`, `patch_size`) or counts."""

    width: int
    layers: int
    heads: int
    patch_size: int
    input_resolution: int

    @property
    def token_dim(self) -> int:
        """Channels of a patch token."""
        return self.width


@dataclass(frozen=True)
class SwinDims:
    """Swin v2's image tower: `depths` and `num_heads` have one number per stage, `window_size` is in tokens."""

    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    window_size: int
    patch_size: int
    input_resolution: int
    mlp_ratio: float

    @property
    def token_dim(self) -> int:
        """Channels of a token after the last stage; every stage but the first doubles them."""
        return self.embed_dim * 2 ** (len(self.depths) - 1)


@dataclass(frozen=True)
class TextDims:
    """CLIP's text tower: `context_length` in tokens, start and end included."""

    width: int
    layers: int
    heads: int
    context_length: int


@dataclass(frozen=True)
class CodebookDims:
    """The codebook and how tokens are grounded in it."""

    num_codes: int
    dim: int
    activation: str  # "sparsemax", "softmax" or "sigmoid"
    pooling: str  # "max", "mean" or "sum"


@dataclass(frozen=True)
class TemperatureDecay:
    """The grounding temperature over training: `start`, multiplied by `factor` every `period` steps."""

    start: float
    factor: float
    period: int
    minimum: float

    def at(self, step: int) -> float:
        """
        The effective temperature at a training step: what the original's evaluation divides scores by.

        Raises:
            ValueError: it is 0 or infinite.
        """
        try:
            temperature = max(self.start * self.factor ** (step / self.period), self.minimum)
        except OverflowError:
            temperature = math.inf
        if not 0 < temperature < math.inf:
            raise ValueError(
                f"config: `t_decay` gives a temperature of {temperature} at step {step}; it must be above 0 and finite"
            )
        return temperature


@dataclass(frozen=True)
class OriginalConfig:
    """One run of the original. `codebook` and `temperature` are None for the CLIP baseline."""

    model_type: str
    vision: VisionTransformerDims | SwinDims
    text: TextDims
    embed_dim: int
    codebook: CodebookDims | None
    temperature: TemperatureDecay | None


def _vision_transformer(values: Any, patch_size: int) -> tuple[VisionTransformerDims, int]:
    section = Section("model.kwargs.image_encode", values, ignored=("checkpoint", "dropout", "emb_dropout"))
    dims = VisionTransformerDims(
        width=section.integer("width", 768),
        layers=section.integer("layers", 12, MOST_LAYERS),
        heads=section.integer("heads", 12),
        patch_size=section.integer("patch_size", patch_size),
        input_resolution=section.integer("input_resolution", 224, _LARGEST_SIDE),
    )
    embed_dim = section.integer("embed_dim")
    section.finish()
    _check_divisible(section.path, "width", dims.width, "heads", dims.heads)
    _check_divisible(section.path, "input_resolution", dims.input_resolution, "patch_size", dims.patch_size)
    return dims, embed_dim


def _swin(values: Any) -> tuple[SwinDims, int]:
    root = Section("swin", values, ignored=("FUSED_LAYERNORM",))
    data, model = Section("DATA", root.get("DATA")), root.get("MODEL")
    model = Section("MODEL", model, ignored=("NAME", "DROP_PATH_RATE", "DROP_RATE", "USE_CHECKPOINT"))
    model.choice("TYPE", ("swinv2",))
    swin = Section("MODEL.SWINV2", model.get("SWINV2"), ignored=("use_checkpoint",))
    for name, value in (("QKV_BIAS", True), ("APE", False), ("PATCH_NORM", True)):
        swin.choice(name, (value,), default=value)
    dims = SwinDims(
        embed_dim=swin.integer("EMBED_DIM"),
        depths=swin.integers("DEPTHS", MOST_LAYERS),
        num_heads=swin.integers("NUM_HEADS"),
        window_size=swin.integer("WINDOW_SIZE", largest=_LARGEST_WINDOW),
        patch_size=swin.integer("PATCH_SIZE"),
        input_resolution=data.integer("IMG_SIZE", largest=_LARGEST_SIDE),
        mlp_ratio=swin.number("MLP_RATIO"),
    )
    num_stages = len(dims.depths)
    swin.choice("PRETRAINED_WINDOW_SIZES", ([0] * num_stages,), default=[0] * num_stages)
    num_classes = model.integer("NUM_CLASSES")
    for section in (root, data, model, swin):
        section.finish()
    if len(dims.num_heads) != num_stages:
        raise ValueError(f"config: DEPTHS {dims.depths} and NUM_HEADS {dims.num_heads} must have the same length")
    total_stride = dims.patch_size * 2 ** (num_stages - 1)
    _check_divisible("DATA", "IMG_SIZE", dims.input_resolution, "PATCH_SIZE and stages", total_stride)
    for stage, heads in enumerate(dims.num_heads):
        _check_divisible("MODEL.SWINV2", f"channels of stage {stage}", dims.embed_dim * 2**stage, "heads", heads)
        side = dims.input_resolution // dims.patch_size // 2**stage
        window = min(side, dims.window_size)
        _check_divisible("MODEL.SWINV2", f"side of stage {stage}", side, "window", window)
    return dims, num_classes


def _text(values: Any) -> tuple[TextDims, int]:
    ignored = ("bpe_path", "checkpoint", "text_model_utils")
    section = Section("model.kwargs.text_encode", values, ignored=ignored)
    section.choice("text_encode_type", ("Transformer",))
    section.choice("positional_embedding_flag", (True,), default=True)
    dims = TextDims(
        width=section.integer("transformer_width", 512),
        layers=section.integer("transformer_layers", 12, MOST_LAYERS),
        heads=section.integer("transformer_heads", 8),
        context_length=section.integer("context_length", 77),
    )
    embed_dim = section.integer("embed_dim")
    section.finish()
    _check_divisible(section.path, "transformer_width", dims.width, "transformer_heads", dims.heads)
    return dims, embed_dim


# Fields of DECLIP+FDT that only its training heads read.
_DECLIP_TRAINING_FIELDS = (
    *("nn_size", "nn_topk", "return_dense", "return_simsiam_text", "return_simsiam_nn_text", "return_caption"),
    *("return_nn_bank", "text_mask_type", "EDA", "feature_dim", "forward_type"),
)


def _codebook(name: str, values: Any, image_token_dim: int, text_token_dim: int) -> CodebookDims:
    is_declip = name == "clip"
    training_fields = _DECLIP_TRAINING_FIELDS if is_declip else ()
    section = Section(f"model.kwargs.{name}", values, ignored=("use_allgather", "sd_temperature", *training_fields))
    dims = CodebookDims(
        num_codes=section.integer("sd_num"),
        dim=section.integer("sd_dim"),
        activation=section.choice("att_func_type", ("sparsemax", "softmax", "sigmoid")),
        pooling=section.choice("pool_type", ("max", "mean", "sum")),
    )
    for field, default, actual in (
        ("raw_img_ft_dim", 768 if is_declip else None, image_token_dim),
        ("raw_txt_ft_dim", 512 if is_declip else None, text_token_dim),
    ):
        value = section.integer(field, default)
        if value != actual:
            raise ValueError(
                f"config: `{section.path}.{field}` is {value}, but the tower's tokens have {actual} channels"
            )
    section.finish()
    return dims


def _temperature(raw: dict) -> TemperatureDecay:
    if "t_decay" not in raw:
        raise ValueError(
            "config: `t_decay` is missing; the grounding temperature is not in the checkpoint, and without "
            "`t_decay` (org_t, sd_T_decay_w, sd_T_decay_iter, sd_T_min) the outputs cannot be reproduced"
        )
    section = Section("t_decay", raw["t_decay"])
    schedule = TemperatureDecay(
        start=section.number("org_t"),
        factor=section.number("sd_T_decay_w"),
        period=section.integer("sd_T_decay_iter"),
        minimum=section.number("sd_T_min"),
    )
    section.finish()
    return schedule


def _check_divisible(path: str, name: str, value: int, divisor_name: str, divisor: int) -> None:
    if value % divisor:
        raise ValueError(f"config: `{path}`: {name} {value} must be a multiple of {divisor_name} {divisor}")


def parse_original_config(raw: Any, swin: Any = SWIN_BASE) -> OriginalConfig:
    """
    Turns the original's configuration into dimensions, with the original's defaults.

    Args:
        raw (`dict`): the whole configuration; `model` and (but for the CLIP baseline) `t_decay` are read.
        swin (`dict`): Swin's dimensions in the form of the original's file; read for `clip_fdt_swinB_v2` only.

    Returns:
        `OriginalConfig`

    Raises:
        ValueError: a field is missing, unknown, of the wrong type or contradicts another.
    """
    if not isinstance(raw, dict) or not isinstance(raw.get("model"), dict):
        raise ValueError("config: expected the original's training configuration, a mapping with the section `model`")
    model = Section("model", raw["model"])
    model_type = model.choice("type", tuple(MODEL_TYPES))
    kwargs = Section("model.kwargs", model.get("kwargs")).values
    kind = MODEL_TYPES[model_type]

    text, text_embed_dim = _text(kwargs.get("text_encode"))
    if kind.vision == "swin":  # Official: `image_encode` is not read for Swin.
        vision, embed_dim = _swin(swin)
    else:
        vision, embed_dim = _vision_transformer(kwargs.get("image_encode"), kind.patch_size)
    if kind.fdt_section is None and embed_dim != text_embed_dim:
        raise ValueError(
            f"config: `embed_dim` is {embed_dim} for images, {text_embed_dim} for text; they must be equal"
        )

    codebook = temperature = None
    if kind.fdt_section is not None:
        codebook = _codebook(kind.fdt_section, kwargs.get(kind.fdt_section), vision.token_dim, text.width)
        temperature = _temperature(raw)
    return OriginalConfig(model_type, vision, text, embed_dim, codebook, temperature)


def read_original_config(path: str | Path, swin_path: str | Path | None = None) -> OriginalConfig:
    """
    Reads the original's `config.json` or YAML.

    Args:
        path: the run's configuration.
        swin_path: Swin's dimensions, if they differ from the original's `swinv2_base_patch4_window7_224.yaml`.

    Raises:
        ValueError: see `read_mapping` and `parse_original_config`.
    """
    raw = read_mapping(path)
    return parse_original_config(raw, SWIN_BASE if swin_path is None else read_mapping(swin_path))
