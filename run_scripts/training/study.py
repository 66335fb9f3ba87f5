# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""
A study: variants of one pretraining run, each tuned by the same number of trials, then trained with several seeds.

Each run is a folder in `output_dir/runs` with its model and `result.json`; where that is there already, the run is
not made again.
"""

import json
import logging
import math
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback

from run_scripts.arguments import build_arguments, find_config, merge, read_config
from run_scripts.evaluation.arguments import TASKS, EvaluationArguments
from run_scripts.evaluation.embedding import load_model
from run_scripts.evaluation.results import find_commit, hash_weights, list_versions
from run_scripts.evaluation.tasks import EVALUATIONS
from run_scripts.training.arguments import PRETRAINING, StudyArguments, slug
from run_scripts.training.pretraining import train
from run_scripts.training.study_report import write_study_report
from run_scripts.training.trainer import FDTTrainingArguments


logger = logging.getLogger(__name__)

RESULT_NAME = "result.json"
# By this, on the validation split of the config, trials are judged.
JUDGED_BY = "eval_rsum"


@dataclass(frozen=True)
class Run:
    """One training: a trial of a variant, or, in full and with another seed, its best trial."""

    variant: str
    trial: int
    seed: int
    is_tuning: bool

    @property
    def name(self) -> str:
        return f"{slug(self.variant)}-trial{self.trial}-seed{self.seed}"


def read_shared_config(arguments: StudyArguments) -> dict[str, Any]:
    """The config of `run_pretraining` that all variants change."""
    return merge(read_config(find_config(arguments.config)), arguments.changes)


def build_run_config(arguments: StudyArguments, run: Run) -> dict[str, Any]:
    """The config of `run_pretraining` that a run is.

    Raises:
        ValueError: a variant or a trial changes what the study itself sets, or there is no split to judge it on.
    """
    variant = arguments.variants[run.variant]
    config = read_shared_config(arguments)
    for changes in (variant["changes"], variant["trials"][run.trial]):
        own = sorted({"seed", "max_steps", "output_dir"} & set(changes))
        if own:
            raise ValueError(f"variant {run.variant!r} changes {own}, which the study sets itself")
        config = merge(config, changes)
    if config.get("validation_split") is None or config.get("max_steps", -1) < 1:
        raise ValueError(f"config={arguments.config!r} with its changes needs validation_split and max_steps")
    config |= {"seed": run.seed, "output_dir": str(Path(arguments.output_dir, "runs", run.name))}
    return config | ({"max_steps": arguments.tuning_steps} if run.is_tuning else {})


def check_study(arguments: StudyArguments) -> None:
    """Raise a ValueError for a trial or an evaluation that would be refused when its turn comes."""
    for name, variant in arguments.variants.items():
        for number in range(len(variant["trials"])):
            for is_tuning in (True, False):
                run = Run(name, number, 0, is_tuning)
                check_judged(run, build_arguments(PRETRAINING, build_run_config(arguments, run))[2])
    for title, evaluation in arguments.evaluations.items():
        if evaluation["task"] not in TASKS:
            raise ValueError(f"evaluation {title!r} has task {evaluation['task']!r}, not one of {[*TASKS]}")
        build_task_arguments(arguments, evaluation, "")


def check_judged(run: Run, training_arguments: FDTTrainingArguments) -> None:
    """Raise a ValueError for a trial that no evaluation would judge, or another run without one at its end."""
    strategy, max_steps = str(training_arguments.eval_strategy.value), training_arguments.max_steps
    if strategy == "no":
        raise ValueError(f"{run.name}: eval_strategy must be 'steps' or 'epoch', got 'no'")
    if strategy == "epoch":  # the last one ends with the run
        return
    eval_steps = training_arguments.eval_steps
    interval = math.ceil(max_steps * eval_steps) if eval_steps < 1 else int(eval_steps)  # below 1: a share of the run
    if run.is_tuning and interval > max_steps:
        raise ValueError(
            f"{run.name}: eval_steps must be at most tuning_steps, got eval_steps={interval} and "
            f"tuning_steps={max_steps}"
        )
    if not run.is_tuning and max_steps % interval:
        raise ValueError(
            f"{run.name}: eval_steps must divide max_steps, got eval_steps={interval} and max_steps={max_steps}"
        )


class StepTimer(TrainerCallback):
    """Takes the processor's time of every step: forward, backward and optimiser, without preparing the data.

    Unlike the time on the wall it hardly depends on what else the machine does.
    """

    def __init__(self):
        self.seconds = []

    def on_step_begin(self, *args, **kwargs):
        self.started = time.process_time()

    def on_step_end(self, *args, **kwargs):
        self.seconds.append(time.process_time() - self.started)


def run_once(arguments: StudyArguments, run: Run, command: str) -> dict[str, Any]:
    """Train, test and write down one run, or read what was written down before.

    Raises:
        ValueError: what was written down had another config.
    """
    config = build_run_config(arguments, run)
    folder = Path(config["output_dir"])
    path = folder / RESULT_NAME
    if path.exists():
        result = json.loads(path.read_text(encoding="utf-8"))
        differing = sorted(
            name for name in {*config, *result["config"]} if config.get(name) != result["config"].get(name)
        )
        if differing:
            raise ValueError(f"{path} has other {differing}: remove it, or give another output_dir")
        return result
    started, timer = time.perf_counter(), StepTimer()
    trainer = train(*build_arguments(PRETRAINING, config), callbacks=[timer])
    history = [entry for entry in trainer.state.log_history if JUDGED_BY in entry]
    result = {
        **asdict(run),
        "validation": [[entry["step"], entry[JUDGED_BY]] for entry in history],
        "evaluations": {} if run.is_tuning else evaluate_run(arguments, folder),
        "num_parameters": count_saved_parameters(trainer.model),
        "cpu_seconds_per_step": statistics.median(timer.seconds),
        "weights_sha256": hash_weights(str(folder)),
        "seconds": time.perf_counter() - started,
        "config": config,
        "command": command,
        "commit": find_commit(),
        "versions": list_versions(),
        "num_threads": torch.get_num_threads(),
    }
    # Written beside and renamed, so that a run that is stopped leaves nothing that looks finished.
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    unfinished.rename(path)
    logger.info("%s: %s %.1f, %.0f seconds", run.name, JUDGED_BY, score(result), result["seconds"])
    return result


def count_saved_parameters(model: PreTrainedModel) -> int:
    """Without what trained beside the model alone."""
    unsaved = model._keys_to_ignore_on_save or ()
    return sum(parameter.numel() for name, parameter in model.named_parameters() if name not in unsaved)


def build_task_arguments(arguments: StudyArguments, evaluation: dict[str, Any], model: str) -> EvaluationArguments:
    """The arguments of an evaluation of a model, on the data of the config where it names no other."""
    defaults = {"model": model, "dataset": read_shared_config(arguments)["dataset"], **evaluation["arguments"]}
    return build_arguments([TASKS[evaluation["task"]]], defaults)[0]


def evaluate_run(arguments: StudyArguments, folder: Path) -> dict[str, dict[str, Any]]:
    """By title, what every evaluation of the study finds of the saved model, with a hash of the data; none where the
    evaluation is not for its type."""
    model, processor = load_model(str(folder), "cpu")
    found = {}
    for title, evaluation in arguments.evaluations.items():
        if model.config.model_type not in evaluation.get("only", [model.config.model_type]):
            continue
        task_arguments = build_task_arguments(arguments, evaluation, str(folder))
        outcome = EVALUATIONS[type(task_arguments)](model, processor, task_arguments)
        found[title] = {
            "metrics": {name: asdict(metric) for name, metric in outcome.metrics.items()},
            "data": outcome.data,
        }
    return found


def score(result: dict[str, Any]) -> float:
    """What trials are judged by: of the last evaluation in training."""
    return result["validation"][-1][1]


def run_study(arguments: StudyArguments, command: str) -> None:
    """Run what has not been run, and print and write the report.

    Args:
        arguments: the study.
        command: which is written down with every run.
    """
    check_study(arguments)
    trials, finals = {}, {}
    for name, variant in arguments.variants.items():
        runs = [Run(name, number, arguments.tuning_seed, is_tuning=True) for number in range(len(variant["trials"]))]
        trials[name] = [run_once(arguments, run, command) for run in runs]
    # Seed by seed: a study that is stopped has compared all variants on its first seeds.
    for seed in arguments.seeds:
        for name, results in trials.items():
            best = max(results, key=score)["trial"]
            finals.setdefault(name, []).append(run_once(arguments, Run(name, best, seed, is_tuning=False), command))
        print(write_study_report(arguments, trials, finals))
