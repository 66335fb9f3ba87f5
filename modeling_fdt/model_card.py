# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Model cards. Unlike the other files here this one is no part of a model's code on the Hub."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from huggingface_hub import ModelCard, ModelCardData


if TYPE_CHECKING:  # at run time this import brings peft along, and what peft prints
    from transformers import TrainerState, TrainingArguments

_TEMPLATE = Path(__file__).with_name("model_card.md")
_FILE_NAME = "README.md"


def write_model_card(
    folder: str | Path,
    *,
    title: str | None = None,
    repo_id: str | None = None,
    licence: str | None = None,
    base_model: str | None = None,
    datasets: Sequence[str] = (),
    tags: Sequence[str] = (),
    origin: str = "",
    training: Mapping[str, object] | None = None,
) -> None:
    """
    Writes `README.md`, the model card, into a model's folder. What it says of the model is read from the folder.

    Args:
        folder: the model's folder.
        title: the card's heading; the folder's name by default.
        repo_id: name on the Hub, for the example in the card.
        licence: identifier of the weights' licence on the Hub, where it is known.
        base_model: name on the Hub of the checkpoint that the model starts from, if it has one.
        datasets: names on the Hub of the data that it was trained on.
        tags: further ones than `fdt` and `custom_code`.
        origin: Markdown on where the model comes from, if not from training.
        training: facts of its training by name, see [`describe_training`].

    Raises:
        ValueError: the folder holds no config.json.
    """
    folder = Path(folder)
    config = _read_json(folder / "config.json")
    if not config:
        raise ValueError(f"`folder` must hold a model, got {folder} without config.json.")
    is_classifier = "FDTForImageClassification" in (config.get("architectures") or [])
    data = ModelCardData(
        license=licence,
        library_name="transformers",
        pipeline_tag="image-classification" if is_classifier else "zero-shot-image-classification",
        tags=["fdt", "custom_code", *(tag for tag in tags if tag not in ("fdt", "custom_code"))],
        datasets=list(datasets) or None,
        base_model=base_model,
        model_name=title or folder.resolve().name,
    )
    card = ModelCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        title=data.model_name,
        repo_id=repo_id or "path/of/this/folder",
        licence=licence,
        codebook=config if "codebook_size" in config else None,
        context_length=_read_json(folder / "tokenizer_config.json").get("model_max_length"),
        is_classifier=is_classifier,
        origin=origin,
        training=training,
    )
    card.save(folder / _FILE_NAME)


def describe_training(arguments: "TrainingArguments", state: "TrainerState") -> dict[str, object]:
    """The facts of a training run, by the names under which a card lists them."""
    batch_size = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    facts: dict[str, object] = {
        "steps": f"{state.global_step:,}",
        "epochs": f"{state.epoch or 0:.4g}",
        "examples in a step": f"{batch_size:,}",
        "optimiser": f"{arguments.optim}, betas {arguments.adam_beta1:g} and {arguments.adam_beta2:g}",
        "learning rate": f"{arguments.learning_rate:g}, {arguments.lr_scheduler_type}, "
        f"warm-up {arguments.warmup_steps:g}",
        "weight decay": f"{arguments.weight_decay:g}",
        "precision": "bfloat16" if arguments.bf16 else "float16" if arguments.fp16 else "float32",
        "seed": arguments.seed,
    }
    if losses:
        facts["last training loss"] = f"{losses[-1]:.4g}"
    return facts | {"versions": f"transformers {transformers.__version__}, torch {torch.__version__}"}


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


__all__ = ["describe_training", "write_model_card"]
