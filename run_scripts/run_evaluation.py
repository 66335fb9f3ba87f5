# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Evaluate an FDT or CLIP checkpoint: one task, one data set, one JSON file of results.

    python -m run_scripts.run_evaluation retrieval --model outputs/emoji_two_styles --dataset data/emoji_two_styles
    python -m run_scripts.run_evaluation zero-shot-classification --model ... --preset cifar10
    python -m run_scripts.run_evaluation linear-probe probe.json --seed 1
    python -m run_scripts.run_evaluation report --results outputs/evaluation/*.json --output report.html

A JSON file holds the names of a task's flags. Flags go before files, and files before what a preset says.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from run_scripts.arguments import run_command
from run_scripts.evaluation.arguments import TASKS, EvaluationArguments, ReportArguments, preset_arguments


PROGRAM = "python -m run_scripts.run_evaluation"


def find_task(argv: Sequence[str]) -> str:
    """The task that a command line begins with."""
    parser = argparse.ArgumentParser(prog=PROGRAM, epilog=f"`{PROGRAM} TASK --help` lists the flags of a task.")
    parser.add_argument("task", choices=TASKS)
    if not {*argv[:1]} & {*TASKS, "-h", "--help"}:  # in one line, as `run_command` refuses
        got = repr(argv[0]) if argv else "none"
        parser.exit(2, f"error: the task must be one of {list(TASKS)}, got {got}; `{PROGRAM} --help` explains\n")
    return parser.parse_args(argv[:1]).task


def find_defaults(task: str, config: dict[str, Any], flags: Sequence[str]) -> dict[str, Any]:
    """What the preset says that config files or flags name."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", default=config.get("preset"))
    parser.add_argument("--dataset", default=config.get("dataset"))
    given, _ = parser.parse_known_args(flags)
    return preset_arguments(task, given.preset, given.dataset)


def main(argv: Sequence[str]) -> None:
    task = find_task(argv)

    def run(arguments: EvaluationArguments | ReportArguments) -> None:
        from run_scripts.evaluation.tasks import run_task

        run_task(task, arguments, f"{PROGRAM} {shlex.join(argv)}")

    run_command(run, TASKS[task], argv=argv[1:], defaults=partial(find_defaults, task), prog=f"{PROGRAM} {task}")


if __name__ == "__main__":
    main(sys.argv[1:])
