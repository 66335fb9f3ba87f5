# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""A run of one task: load, evaluate, print, and write down what was found."""

import re
from pathlib import Path

import torch

from run_scripts.evaluation import arguments as tasks
from run_scripts.evaluation.codes import evaluate_codes
from run_scripts.evaluation.completeness import evaluate_completeness
from run_scripts.evaluation.concepts import evaluate_concepts
from run_scripts.evaluation.embedding import load_model
from run_scripts.evaluation.linear_probe import evaluate_linear_probe
from run_scripts.evaluation.localization import evaluate_localization
from run_scripts.evaluation.report import write_report
from run_scripts.evaluation.results import build_record, describe_device, format_markdown, read_record, write_record
from run_scripts.evaluation.retrieval import evaluate_retrieval
from run_scripts.evaluation.tagging import evaluate_tagging
from run_scripts.evaluation.vqa import evaluate_vqa
from run_scripts.evaluation.zero_shot import evaluate_zero_shot


EVALUATIONS = {
    tasks.ZeroShotArguments: evaluate_zero_shot,
    tasks.RetrievalArguments: evaluate_retrieval,
    tasks.LinearProbeArguments: evaluate_linear_probe,
    tasks.VQAArguments: evaluate_vqa,
    tasks.CompletenessArguments: evaluate_completeness,
    tasks.CodesArguments: evaluate_codes,
    tasks.TaggingArguments: evaluate_tagging,
    tasks.LocalizationArguments: evaluate_localization,
    tasks.ConceptsArguments: evaluate_concepts,
}


def default_output(task: str, arguments: tasks.EvaluationArguments) -> Path:
    """A file named after task, model, data and split; a second run of the same four replaces the first."""
    parts = (task, arguments.model, arguments.preset or arguments.dataset, arguments.split)
    name = "_".join(re.sub(r"[^\w.-]+", "-", part.rstrip("/").rsplit("/", 1)[-1]) for part in parts)
    return Path("outputs", "evaluation", f"{name}.json")


def run_task(task: str, arguments: tasks.EvaluationArguments | tasks.ReportArguments, command: str) -> None:
    """Evaluate, print a Markdown table, and write the results and, where asked for, the report."""
    if isinstance(arguments, tasks.ReportArguments):
        write_report([read_record(path) for path in arguments.results], Path(arguments.output))
        return
    torch.manual_seed(arguments.seed)
    model, processor = load_model(arguments.model, arguments.device)
    evaluation = EVALUATIONS[type(arguments)](model, processor, arguments)
    record = build_record(task, arguments, evaluation, command, describe_device(model.device))
    output = default_output(task, arguments) if arguments.output is None else Path(arguments.output)
    write_record(record, output)
    print(format_markdown(record))
    print(f"\nWritten to {output}")
    if arguments.report is not None:
        write_report([record], Path(arguments.report))
