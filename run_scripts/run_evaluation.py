# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Evaluate an FDT or CLIP checkpoint: one task, one data set, one JSON file of results.

    python -m run_scripts.run_evaluation retrieval --model outputs/emoji_two_styles --dataset data/emoji_two_styles
    python -m run_scripts.run_evaluation zero-shot-classification --model ... --preset cifar10
    python -m run_scripts.run_evaluation linear-probe probe.json
    python -m run_scripts.run_evaluation report --results outputs/evaluation/*.json --output report.html

A JSON file holds the same names as a task's flags; either way an unknown one is an error. Flags go before what a
preset says.
"""

import argparse
import json
import logging
import re
import shlex
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from transformers import HfArgumentParser

from run_scripts.evaluation.codes import CodesArguments, evaluate_codes
from run_scripts.evaluation.completeness import CompletenessArguments, evaluate_completeness
from run_scripts.evaluation.concepts import ConceptsArguments, evaluate_concepts
from run_scripts.evaluation.embedding import load_model
from run_scripts.evaluation.linear_probe import LinearProbeArguments, evaluate_linear_probe
from run_scripts.evaluation.localization import LocalizationArguments, evaluate_localization
from run_scripts.evaluation.report import write_report
from run_scripts.evaluation.results import (
    EvaluationArguments,
    build_record,
    describe_device,
    format_markdown,
    read_record,
    write_record,
)
from run_scripts.evaluation.retrieval import RetrievalArguments, evaluate_retrieval
from run_scripts.evaluation.tagging import TaggingArguments, evaluate_tagging
from run_scripts.evaluation.vqa import VQAArguments, evaluate_vqa
from run_scripts.evaluation.zero_shot import ZeroShotArguments, evaluate_zero_shot


TASKS = {
    "zero-shot-classification": (ZeroShotArguments, evaluate_zero_shot),
    "retrieval": (RetrievalArguments, evaluate_retrieval),
    "linear-probe": (LinearProbeArguments, evaluate_linear_probe),
    "vqa": (VQAArguments, evaluate_vqa),
    "completeness": (CompletenessArguments, evaluate_completeness),
    "codes": (CodesArguments, evaluate_codes),
    "tagging": (TaggingArguments, evaluate_tagging),
    "localization": (LocalizationArguments, evaluate_localization),
    "concepts": (ConceptsArguments, evaluate_concepts),
}
PRESETS = json.loads(Path(__file__).with_name("evaluation").joinpath("presets.json").read_text(encoding="utf-8"))


@dataclass
class ReportArguments:
    """What the task `report` needs."""

    results: list[str] = field(metadata={"help": "JSON files of results, in the order of the page."})
    output: str = field(metadata={"help": "The HTML file to write."})


def preset_arguments(task: str, preset: str | None, dataset: str | None) -> dict[str, Any]:
    """What a preset says of the flags of a task; nothing without a preset.

    Args:
        task: one of `TASKS`.
        preset: its name.
        dataset: the user's own copy of the data, to which the preset's `config_name` does not apply.

    Raises:
        ValueError: there is no such preset for the task.
    """
    if preset is None:
        return {}
    if preset not in PRESETS or task not in PRESETS[preset]["tasks"]:
        known = sorted(name for name, content in PRESETS.items() if task in content["tasks"])
        raise ValueError(f"preset={preset!r} is not one for {task}; there are {known}")
    flags = {flag.name for flag in fields(TASKS[task][0])}
    if dataset is not None:
        flags -= {"dataset", "config_name"}
    return {flag: value for flag, value in PRESETS[preset]["arguments"].items() if flag in flags}


def parse_arguments(argv: list[str]) -> tuple[str, EvaluationArguments | ReportArguments]:
    """Read the task, then one JSON file or flags."""
    program = "python -m run_scripts.run_evaluation"
    parser = argparse.ArgumentParser(prog=program, epilog=f"`{program} TASK --help` lists the flags of a task.")
    parser.add_argument("task", choices=[*TASKS, "report"])
    task, argv = parser.parse_args(argv[:1]).task, argv[1:]
    if task == "report":
        parser = HfArgumentParser(ReportArguments, prog=f"{program} report", allow_abbrev=False)
        return task, *parser.parse_args_into_dataclasses(argv)

    parser = HfArgumentParser(TASKS[task][0], prog=f"{program} {task}", allow_abbrev=False)
    if len(argv) == 1 and argv[0].endswith(".json"):
        values = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
        preset = preset_arguments(task, values.get("preset"), values.get("dataset"))
        return task, *parser.parse_dict({**preset, **values})
    preset_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    preset_parser.add_argument("--preset")
    preset_parser.add_argument("--dataset")
    parser.set_defaults(**preset_arguments(task, **vars(preset_parser.parse_known_args(argv)[0])))
    return task, *parser.parse_args_into_dataclasses(argv)


def default_output(task: str, arguments: EvaluationArguments) -> Path:
    """A file named after task, model, data and split; a second run of the same four replaces the first."""
    parts = (task, arguments.model, arguments.preset or arguments.dataset, arguments.split)
    name = "_".join(re.sub(r"[^\w.-]+", "-", part.rstrip("/").rsplit("/", 1)[-1]) for part in parts)
    return Path("outputs", "evaluation", f"{name}.json")


def run(task: str, arguments: EvaluationArguments, command: str) -> dict[str, Any]:
    """Evaluate, print a Markdown table, and write the results and, where asked for, the report."""
    torch.manual_seed(arguments.seed)
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model, processor = load_model(arguments.model, device)
    evaluation = TASKS[task][1](model, processor, arguments)
    record = build_record(task, arguments, evaluation, command, describe_device(device))
    output = default_output(task, arguments) if arguments.output is None else Path(arguments.output)
    write_record(record, output)
    print(format_markdown(record))
    print(f"\nWritten to {output}")
    if arguments.report is not None:
        write_report([record], Path(arguments.report))
    return record


def main(argv: list[str]) -> None:
    task, arguments = parse_arguments(argv)
    if task == "report":
        write_report([read_record(path) for path in arguments.results], Path(arguments.output))
    else:
        run(task, arguments, f"python -m run_scripts.run_evaluation {shlex.join(argv)}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    main(sys.argv[1:])
