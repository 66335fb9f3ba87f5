# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Upload a model's folder to the Hub, with a model card and its results.

    python -m run_scripts.push_to_hub --folder outputs/emoji_two_styles --repo_id me/emoji --licence cc-by-sa-4.0 \\
        --results outputs/emoji_two_styles/results.json

A folder that has a card (README.md) keeps it; results take the place of those in it. Checkpoints of the training and
pickled files stay behind.
"""

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCard
from transformers import HfArgumentParser

from modeling_fdt.model_card import write_model_card


logger = logging.getLogger(__name__)


_CARD_NAME = "README.md"
_EVALUATION = re.compile(r"^## Evaluation\n.*?(?=^## |\Z)", flags=re.MULTILINE | re.DOTALL)


@dataclass
class PushArguments:
    folder: str = field(metadata={"help": "Folder with the model and its processor."})
    repo_id: str = field(metadata={"help": "Name of the repository on the Hub: owner/name."})
    private: bool = field(default=False, metadata={"help": "Make a new repository private."})
    licence: str | None = field(
        default=None, metadata={"help": "Identifier of the weights' licence on the Hub, for a new card."}
    )
    datasets: list[str] = field(
        default_factory=list, metadata={"help": "Names on the Hub of the training data, for a new card."}
    )
    base_model: str | None = field(
        default=None, metadata={"help": "Name on the Hub of the checkpoint that was trained further, for a new card."}
    )
    results: list[str] = field(
        default_factory=list, metadata={"help": "JSON files of run_evaluation or run_demo, for the card."}
    )


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


def main(arguments: PushArguments) -> None:
    """Write the card where there is none, put the results into it, and upload.

    Raises:
        ValueError: the folder holds no model, a fact is given for a card that is there, or a file holds no results.
        huggingface_hub.errors.HfHubHTTPError: the Hub refuses. The folder stays as it is, and the upload can be
            tried again.
    """
    facts = {name: getattr(arguments, name) for name in ("licence", "datasets", "base_model")}
    given = [name for name, value in facts.items() if value]
    if not (Path(arguments.folder) / "README.md").exists():
        write_model_card(arguments.folder, title=arguments.repo_id, repo_id=arguments.repo_id, **facts)
    elif given:
        raise ValueError(f"{given} are for new cards; {arguments.folder} has README.md: edit it, or delete it")
    if arguments.results:
        add_results(arguments.folder, arguments.results)
    push_folder(arguments.folder, arguments.repo_id, private=arguments.private or None)
    logger.info("uploaded %s to %s", arguments.folder, arguments.repo_id)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    main(*HfArgumentParser(PushArguments, allow_abbrev=False).parse_args_into_dataclasses())
