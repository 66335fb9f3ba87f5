# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""A folder's model card before an upload: whether somebody wrote one, its results, and adapters' base model."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from modeling_fdt.model_card import find_base_model
from run_scripts.data.files import format_markdown_table


_CARD_NAME = "README.md"
_EVALUATION = re.compile(r"^## Evaluation\n.*?(?=^## |\Z)", flags=re.MULTILINE | re.DOTALL)
# What peft and Trainer leave in a folder by themselves.
_BLANK = re.compile(
    r"\[More Information Needed\]|generated automatically according to the information the Trainer had"
)


def is_written(folder: str | Path) -> bool:
    """Whether a folder has a model card that says something: not the form that peft or Trainer leave there."""
    path = Path(folder) / _CARD_NAME
    return path.exists() and _BLANK.search(path.read_text(encoding="utf-8")) is None


def name_base_model(folder: str | Path, base_model: str | None) -> None:
    """
    Sees to it that adapters name their base model as the Hub knows it, not by a folder of this machine.

    Args:
        folder: of the adapters; of a whole model it stays as it is.
        base_model: name on the Hub; None where the adapters name it.

    Raises:
        ValueError: the base model is a folder, and no name is given.
    """
    path = Path(folder) / "adapter_config.json"
    if not path.exists():
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    name = base_model or find_base_model(folder)
    if name is None:
        raise ValueError(
            f"base_model must be given: the adapters in {folder} belong to {config.get('base_model_name_or_path')!r}, "
            "which others cannot load; push it first, or name the model on the Hub that it is"
        )
    if config.get("base_model_name_or_path") != name:
        config["base_model_name_or_path"] = name
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def add_results(folder: str | Path, paths: Sequence[str | Path]) -> None:
    """
    Puts results into a folder's model card, in place of those it has: a table, and the model-index that the Hub reads.

    Args:
        folder: holds the card.
        paths: JSON files of `run_scripts.run_evaluation` or `run_scripts.run_demo`.

    Raises:
        ValueError: there is no card, or a file is not one of results.
    """
    path = Path(folder) / _CARD_NAME
    if not path.exists():
        raise ValueError(f"`folder` must hold a model card, got {folder} without {_CARD_NAME}.")
    results = [result for name in paths for result in read_results(name)]
    card = ModelCard.load(path)
    rows = []
    for result in results:
        data = f"{result.dataset_name} ({result.dataset_split})"
        chance = (result.metric_args or {}).get("chance", "")
        rows.append([data, result.metric_name, str(result.metric_value), str(chance)])
    table = format_markdown_table(["data", "metric", "value", "chance"], rows, num_left=2)
    section = f"## Evaluation\n\n{table}\n\n"
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
