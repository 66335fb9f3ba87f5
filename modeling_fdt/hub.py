# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Model cards and uploads. Unlike the other files here this one is no part of a model's code on the Hub."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from transformers import TrainerState, TrainingArguments


_TEMPLATE = Path(__file__).with_name("model_card.md")
_FILE_NAME = "README.md"
_EVALUATION = re.compile(r"^## Evaluation\n.*?(?=^## |\Z)", flags=re.MULTILINE | re.DOTALL)


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


def describe_training(arguments: TrainingArguments, state: TrainerState) -> dict[str, object]:
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


def add_results(folder: str | Path, paths: Sequence[str | Path]) -> None:
    """
    Puts results into a folder's model card, in place of those it has: a table, and the model-index that the Hub reads.

    Args:
        folder: holds the card.
        paths: JSON files of `run_scripts.run_evaluation` or `run_scripts.run_demo`.

    Raises:
        ValueError: there is no card, or a file is not one of results.
    """
    path = Path(folder) / _FILE_NAME
    if not path.exists():
        raise ValueError(f"`folder` must hold a model card, got {folder} without {_FILE_NAME}.")
    results = [result for name in paths for result in read_results(name)]
    card = ModelCard.load(path)
    table = ["| data | metric | value | chance |", "|---|---|---|---|"]
    for result in results:
        chance = (result.metric_args or {}).get("chance", "")
        data = f"{result.dataset_name} ({result.dataset_split})"
        table.append(f"| {data} | {result.metric_name} | {result.metric_value} | {chance} |")
    section = "## Evaluation\n\n" + "\n".join(table) + "\n\n"
    card.text, num_sections = _EVALUATION.subn(lambda _: section, card.text)
    if num_sections != 1:
        raise ValueError(f"{path} must have one section `## Evaluation`, got {num_sections}.")
    card.data.model_name = card.data.model_name or Path(folder).resolve().name
    card.data.eval_results = results
    card.save(path)


def read_results(path: str | Path) -> list[EvalResult]:
    """
    What an evaluation or the demo wrote down, as the Hub wants it: shares of 1 and numbers, to four digits.

    Raises:
        ValueError: the file holds something else.
    """
    record = json.loads(Path(path).read_text(encoding="utf-8"))
    if isinstance(record, dict) and {"task", "metrics", "data"} <= set(record):
        source, split = record["data"][0]["source"], record["data"][0]["split"]
        task = record["task"].replace("_", "-")
        return [_build_result(task, Path(source).name, split, *item) for item in record["metrics"].items()]
    if isinstance(record, dict) and {"config", "results"} <= set(record):
        task, source = "zero-shot-image-classification", Path(record["config"]).stem
        splits = record["results"].items()
        return [_build_result(task, source, split, *item) for split, metrics in splits for item in metrics.items()]
    raise ValueError(f"{path} holds no results of run_scripts.run_evaluation or run_scripts.run_demo.")


def push_folder(folder: str | Path, repo_id: str, private: bool | None = None) -> None:
    """
    Uploads a model's folder to the Hub, without checkpoints of its training and without pickled files.

    Args:
        folder: what to upload.
        repo_id: name of the repository, which is created if it does not exist.
        private: whether a new repository is private; by default what its owner has set.
    """
    api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    api.upload_folder(repo_id=repo_id, folder_path=folder, ignore_patterns=["checkpoint-*", "*.bin"])


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _build_result(task: str, source: str, split: str, name: str, metric: dict[str, Any]) -> EvalResult:
    chance = metric.get("chance")
    return EvalResult(
        task_type=task,
        dataset_type=source,
        dataset_name=source,
        dataset_split=split,
        metric_type=name,
        metric_name=name,
        metric_value=float(f"{metric['value']:.4g}"),
        metric_args=None if chance is None else {"chance": float(f"{chance:.4g}")},
    )


__all__ = ["add_results", "describe_training", "push_folder", "read_results", "write_model_card"]
