# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Model cards. Unlike the other files here this one is no part of a model's code on the Hub."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData


_TEMPLATE = Path(__file__).with_name("model_card.md")
_FILE_NAME = "README.md"


def write_model_card(
    folder: str | Path,
    *,
    title: str | None = None,
    repo_id: str | None = None,
    license: str | None = None,
    base_model: str | None = None,
    datasets: Sequence[str] = (),
    tags: Sequence[str] = (),
    origin: str = "",
    training: Mapping[str, object] | None = None,
) -> None:
    """
    Writes `README.md`, the model card, into a model's folder. What it says of the model is read from the folder.

    Args:
        folder: the folder of a model, or of peft's adapters on one together with the model's config.json.
        title: the card's heading; the folder's name by default.
        repo_id: name on the Hub, for the example in the card.
        license: identifier of the weights' licence on the Hub, where it is known.
        base_model: name on the Hub of the checkpoint that the model starts from, if it has one; of adapters by default
            what they name themselves, unless it is a folder.
        datasets: names on the Hub of the data that it was trained on.
        tags: further ones than `fdt` and `custom_code`.
        origin: Markdown on where the model comes from, if not from training.
        training: facts of its training by the names under which the card lists them.

    Raises:
        ValueError: the folder holds no config.json.
    """
    folder = Path(folder)
    config = _read_json(folder / "config.json")
    if not config:
        raise ValueError(f"`folder` must hold a model, got {folder} without config.json.")
    adapters = _read_json(folder / "adapter_config.json")
    model_class = (config.get("architectures") or [""])[0]
    if adapters:
        model_class = (adapters.get("auto_mapping") or {}).get("base_model_class", model_class)
        base_model = base_model or find_base_model(folder)
    half, task = {
        "FDTForImageClassification": (None, "image-classification"),
        "FDTTextModel": ("text", "feature-extraction"),
        "FDTVisionModel": ("image", "image-feature-extraction"),
    }.get(model_class, (None, "zero-shot-image-classification"))
    tags = ("fdt", "custom_code", *(["lora"] if adapters else []), *tags)
    data = ModelCardData(
        license=license,
        library_name="peft" if adapters else "transformers",
        pipeline_tag=task,
        tags=list(dict.fromkeys(tags)),
        datasets=list(datasets) or None,
        base_model=base_model,
        base_model_relation="adapter" if adapters and base_model else None,
        model_name=title or folder.resolve().name,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        title=data.model_name,
        repo_id=repo_id or "path/of/this/folder",
        license=license,
        base_model=base_model or "path/of/the/base/model",
        adapters=adapters,
        codebook=config if "codebook_size" in config else None,
        context_length=_read_json(folder / "tokenizer_config.json").get("model_max_length"),
        is_classifier=task == "image-classification",
        half=half,
        origin=origin,
        training=training,
    )
    card.save(folder / _FILE_NAME)


def find_base_model(folder: str | Path) -> str | None:
    """The name on the Hub of the model that a folder's adapters belong to; None where they name a local folder."""
    name = _read_json(Path(folder) / "adapter_config.json").get("base_model_name_or_path") or ""
    return name if re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name) and not Path(name).exists() else None


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


__all__ = ["find_base_model", "write_model_card"]
