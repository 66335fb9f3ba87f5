# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Fine-tune an FDT checkpoint on labelled or captioned images.

    python -m run_scripts.run_finetuning run_scripts/configs/finetune_emoji.json
    python -m run_scripts.run_finetuning --model ... --task classification --dataset ... --output_dir ...

The held-out split is evaluated before and after training; both results are in `results.json` beside the model.
"""

from typing import TYPE_CHECKING

from run_scripts.arguments import run_command
from run_scripts.training.arguments import FINE_TUNING, FineTuningArguments, FineTuningDataArguments


if TYPE_CHECKING:
    from run_scripts.training.trainer import FDTTrainingArguments


def main(
    arguments: FineTuningArguments, data_arguments: FineTuningDataArguments, training_arguments: "FDTTrainingArguments"
) -> None:
    from run_scripts.training.finetuning import finetune

    finetune(arguments, data_arguments, training_arguments)


if __name__ == "__main__":
    run_command(main, *FINE_TUNING)
