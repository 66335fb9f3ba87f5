"""Towers of OpenCLIP checkpoints that are stored by OpenCLIP's own names.

Source: https://github.com/mlfoundations/open_clip, `open_clip_config.json` and `open_clip_model.safetensors`.
"""

from pathlib import Path

from safetensors.torch import load_file
from transformers import CLIPImageProcessor, CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from .key_map import check_tensors, clip_tower_entries, to_ours
from .original_config import Section, read_mapping


CONFIG_FILE, WEIGHTS_FILE = "open_clip_config.json", "open_clip_model.safetensors"
_DROPPED = {
    "visual.proj": "projection of the image embedding",
    "text_projection": "projection of the text embedding",
    "logit_scale": "scale of the projected embeddings' similarity",
    "logit_bias": "bias of the projected embeddings' similarity",
}


def is_open_clip(folder: str | Path) -> bool:
    """Whether a folder holds an OpenCLIP checkpoint and none of transformers beside it."""
    return (Path(folder) / CONFIG_FILE).is_file() and not (Path(folder) / "config.json").is_file()


def _read_config(folder: Path) -> tuple[CLIPVisionConfig, CLIPTextConfig]:
    root = Section(CONFIG_FILE, read_mapping(folder / CONFIG_FILE), ignored=("preprocess_cfg",))
    ignored = ("embed_dim", "init_logit_scale", "init_logit_bias", "custom_text")
    model = Section("model_cfg", root.get("model_cfg"), ignored=ignored)
    vision = Section("model_cfg.vision_cfg", model.get("vision_cfg"), ignored=("patch_dropout",))
    text = Section("model_cfg.text_cfg", model.get("text_cfg"), ignored=("eos_id", "pad_id"))
    for section in (vision, text):
        section.choice("mlp_ratio", (4.0,), default=4.0)
    activation = "quick_gelu" if model.choice("quick_gelu", (True, False), default=False) else "gelu"
    vision_width, text_width = vision.integer("width", 768), text.integer("width", 512)
    vision_config = CLIPVisionConfig(
        hidden_size=vision_width,
        intermediate_size=4 * vision_width,
        num_hidden_layers=vision.integer("layers", 12),
        num_attention_heads=vision_width // vision.integer("head_width", 64),
        image_size=vision.integer("image_size", 224),
        patch_size=vision.integer("patch_size", 16),
        hidden_act=activation,
    )
    vocab_size = text.integer("vocab_size", 49408)
    text_config = CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=text_width,
        intermediate_size=4 * text_width,
        num_hidden_layers=text.integer("layers", 12),
        num_attention_heads=text.integer("heads", 8),
        max_position_embeddings=text.integer("context_length", 77),
        hidden_act=activation,
        bos_token_id=vocab_size - 2,
        eos_token_id=vocab_size - 1,
        pad_token_id=0,
    )
    for section in (root, model, vision, text):
        section.finish()
    return vision_config, text_config


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
    tensors = load_file(folder / WEIGHTS_FILE)
    towers = {"vision.": CLIPVisionModel(vision_config), "text.": CLIPTextModel(text_config)}
    entries = clip_tower_entries(vision_config.num_hidden_layers, "vision", "visual.", "vision.")
    entries += clip_tower_entries(text_config.num_hidden_layers, "text", "", "text.")
    shapes = {
        prefix + name: value.shape for prefix, tower in towers.items() for name, value in tower.state_dict().items()
    }
    check_tensors(tensors, entries, shapes, _DROPPED)
    converted = to_ours(tensors, entries)
    for prefix, tower in towers.items():
        own = {name.removeprefix(prefix): value for name, value in converted.items() if name.startswith(prefix)}
        tower.load_state_dict(own, strict=True)
    return towers["vision."], towers["text."]


def open_clip_image_processor(folder: str | Path) -> CLIPImageProcessor:
    """The image statistics of an OpenCLIP folder: short side and centre crop to the tower's size."""
    side = _read_config(Path(folder))[0].image_size
    preprocessing = read_mapping(Path(folder) / CONFIG_FILE).get("preprocess_cfg", {})
    statistics = {f"image_{name}": preprocessing[name] for name in ("mean", "std") if name in preprocessing}
    return CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side}, **statistics)
