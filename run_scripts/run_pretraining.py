# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Train an FDT model, or a CLIP to compare it with, on images with captions.

    python -m run_scripts.run_pretraining run_scripts/configs/emoji_two_styles.json --learning_rate 5e-4
    python -m run_scripts.run_pretraining --dataset ... --model_config '{"codebook_size": 16384}' --output_dir ...

docs/training.md tells more.
"""

from typing import TYPE_CHECKING

from run_scripts.arguments import DataArguments, run_command
from run_scripts.training.arguments import PRETRAINING, ModelArguments, ObjectiveArguments


if TYPE_CHECKING:
    from run_scripts.training.trainer import FDTTrainingArguments


def main(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    training_arguments: "FDTTrainingArguments",
    objective_arguments: ObjectiveArguments,
) -> None:
    from run_scripts.training.pretraining import refuse_to_overwrite, train

    refuse_to_overwrite(training_arguments)
    train(model_arguments, data_arguments, training_arguments, objective_arguments)


if __name__ == "__main__":
    run_command(main, *PRETRAINING)
