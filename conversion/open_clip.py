# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Towers of OpenCLIP checkpoints that are stored by OpenCLIP's own names.

Source: https://github.com/mlfoundations/open_clip, `open_clip_config.json` and `open_clip_model.safetensors`.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import CLIPImageProcessor, CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling

from .command_line import reported_as
from .key_map import check_tensors, clip_tower_entries, to_ours
from .strict_config import MOST_LAYERS, Section, read_mapping
from .weights import check_values


CONFIG_FILE, WEIGHTS_FILE = "open_clip_config.json", "open_clip_model.safetensors"
_DROPPED = {
    "visual.proj": "projection of the image embedding",
    "text_projection": "projection of the text embedding",
    "logit_scale": "scale of the projected embeddings' similarity",
    "logit_bias": "bias of the projected embeddings' similarity",
}
# OpenCLIP's evaluation resizes by cubic interpolation unless "bilinear" is asked for.
_RESAMPLE = {
    "bicubic": PILImageResampling.BICUBIC,
    "random": PILImageResampling.BICUBIC,
    "bilinear": PILImageResampling.BILINEAR,
}


def is_open_clip(folder: str | Path) -> bool:
    """Whether a folder holds an OpenCLIP checkpoint and none of transformers beside it."""
    return (Path(folder) / CONFIG_FILE).is_file() and not (Path(folder) / "config.json").is_file()


def _read_config(folder: Path) -> tuple[CLIPVisionConfig, CLIPTextConfig]:
    root = Section(CONFIG_FILE, read_mapping(folder / CONFIG_FILE), ignored=("preprocess_cfg",))  # read below
    ignored = ("embed_dim", "init_logit_scale", "init_logit_bias", "custom_text")
    model = Section("model_cfg", root.get("model_cfg"), ignored=ignored)
    vision = Section("model_cfg.vision_cfg", model.get("vision_cfg"), ignored=("patch_dropout",))
    text = Section("model_cfg.text_cfg", model.get("text_cfg"), ignored=("eos_id", "pad_id"))
    for section in (vision, text):
        section.choice("mlp_ratio", (4.0,), default=4.0)
    activation = "quick_gelu" if model.choice("quick_gelu", (True, False), default=False) else "gelu"
    vision_width, text_width = vision.integer("width", 768), text.integer("width", 512)
    vision_sizes = {
        "hidden_size": vision_width,
        "intermediate_size": 4 * vision_width,
        "num_hidden_layers": vision.integer("layers", 12, MOST_LAYERS),
        "num_attention_heads": vision_width // vision.integer("head_width", 64),
        "image_size": vision.integer("image_size", 224),
        "patch_size": vision.integer("patch_size", 16),
    }
    vocab_size = text.integer("vocab_size", 49408)
    text_sizes = {
        "vocab_size": vocab_size,
        "hidden_size": text_width,
        "intermediate_size": 4 * text_width,
        "num_hidden_layers": text.integer("layers", 12, MOST_LAYERS),
        "num_attention_heads": text.integer("heads", 8),
        "max_position_embeddings": text.integer("context_length", 77),
    }
    special_tokens = {"bos_token_id": vocab_size - 2, "eos_token_id": vocab_size - 1, "pad_token_id": 0}
    for section in (root, model, vision, text):
        section.finish()
    with reported_as(f"{folder / CONFIG_FILE}: no model has these sizes"):
        vision_config = CLIPVisionConfig(**vision_sizes, hidden_act=activation)
        return vision_config, CLIPTextConfig(**text_sizes, **special_tokens, hidden_act=activation)


def load_open_clip_towers(folder: str | Path) -> tuple[CLIPVisionModel, CLIPTextModel]:
    """
    The image tower and the text tower of an OpenCLIP folder.

    Args:
        folder: holds `open_clip_config.json` and `open_clip_model.safetensors`.

    Raises:
        ValueError: the model is not a plain CLIP with two transformers, or its weights do not fit its configuration.
    """
    folder = Path(folder)
    vision_config, text_config = _read_config(folder)
    if not (folder / WEIGHTS_FILE).is_file():
        raise ValueError(f"{folder / WEIGHTS_FILE}: no such file")
    with reported_as(f"{folder / WEIGHTS_FILE}: damaged, or not a safetensors file"):
        tensors = load_file(folder / WEIGHTS_FILE)
    classes = {"vision.": (CLIPVisionModel, vision_config), "text.": (CLIPTextModel, text_config)}
    # Names, shapes and values are checked before models of any size are built.
    with reported_as(f"{folder / CONFIG_FILE}: no model has these sizes"), torch.device("meta"):
        shapes = {
            prefix + name: value.shape
            for prefix, (tower_class, config) in classes.items()
            for name, value in tower_class(config).state_dict().items()
        }
    entries = clip_tower_entries(vision_config.num_hidden_layers, "vision", "visual.", "vision.")
    entries += clip_tower_entries(text_config.num_hidden_layers, "text", "", "text.")
    check_tensors(tensors, entries, shapes, _DROPPED)
    check_values(str(folder / WEIGHTS_FILE), tensors, [entry.original for entry in entries])
    converted = to_ours(tensors, entries)
    towers = []
    for prefix, (tower_class, config) in classes.items():
        own = {name.removeprefix(prefix): value for name, value in converted.items() if name.startswith(prefix)}
        towers.append(tower_class(config))
        towers[-1].load_state_dict(own, strict=True)
    return towers[0], towers[1]


def open_clip_image_processor(folder: str | Path) -> CLIPImageProcessor:
    """
    OpenCLIP's evaluation transform of a folder, at the image tower's size.

    Raises:
        ValueError: `preprocess_cfg` asks for what cannot be expressed, or does not fit the tower.
    """
    folder = Path(folder)
    side = _read_config(folder)[0].image_size
    raw = read_mapping(folder / CONFIG_FILE).get("preprocess_cfg", {})
    if isinstance(raw, dict):
        raw = {name: value for name, value in raw.items() if value is not None}  # OpenCLIP's defaults stand there
    section = Section("preprocess_cfg", raw, ignored=("fill_color",))  # of the border that "longest" would add
    section.choice("size", (side, [side, side]), default=side)
    section.choice("mode", ("RGB",), default="RGB")
    # "longest" fits the whole image into the square and fills the rest, which no image processor here does.
    is_squashed = section.choice("resize_mode", ("shortest", "squash"), default="shortest") == "squash"
    options: dict[str, Any] = {
        "resample": _RESAMPLE[section.choice("interpolation", tuple(_RESAMPLE), default="bicubic")],
        "image_mean": section.numbers("mean", 3, default=OPENAI_CLIP_MEAN),
        "image_std": section.numbers("std", 3, default=OPENAI_CLIP_STD),
    }
    if min(options["image_std"]) <= 0:
        raise ValueError(f"config: `preprocess_cfg.std` must be above 0, got {options['image_std']}")
    section.finish()
    square = {"height": side, "width": side}
    if is_squashed:
        return CLIPImageProcessor(size=square, do_center_crop=False, **options)
    return CLIPImageProcessor(size={"shortest_edge": side}, crop_size=square, **options)
