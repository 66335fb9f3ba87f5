# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Compare FDT with its controls at equal compute, on scenes in styles that were never seen.

    python -m run_scripts.run_study run_scripts/configs/study_scenes.json

Every variant is tuned by the same number of trials, short runs that are judged on the split `validation`; its best
trial is then trained in full with every seed and tested. Each run is a folder in `output_dir/runs`, and one that is
finished is not run again. After every seed `output_dir` holds the tables so far, results.md, and study.png.
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
