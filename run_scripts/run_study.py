# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Compare FDT with its controls at equal compute, on drawings in styles that were never seen.

    python -m run_scripts.run_study run_scripts/configs/study_emoji.json

Every variant is tuned by the same number of trials, short runs that are judged on the split `validation`; its best
trial is then trained in full with every seed and tested. Each run is one JSON file in `output_dir/runs`, and one that
is there already is not run again. At the end `output_dir` holds the tables, results.md, and study.png.
docs/study.md tells what was found.
"""

import shlex
import sys

from run_scripts.arguments import run_command
from run_scripts.training.arguments import STUDY, StudyArguments


def main(arguments: StudyArguments) -> None:
    from run_scripts.training.study import run_study

    run_study(arguments, f"python -m run_scripts.run_study {shlex.join(sys.argv[1:])}")


if __name__ == "__main__":
    run_command(main, *STUDY)
