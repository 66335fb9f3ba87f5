# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Train an FDT model on images with captions.

    python -m run_scripts.run_pretraining run_scripts/configs/emoji_two_styles.json
    python -m run_scripts.run_pretraining --dataset ... --model_config '{"codebook_size": 16384}' --output_dir ...

A JSON file holds the same names as the flags; either way an unknown one is an error.
"""

import logging
import sys
from dataclasses import dataclass, field

from transformers import HfArgumentParser, set_seed

from modeling_fdt import FDTConfig, FDTImageProcessor, FDTModel, FDTProcessor, FDTTokenizer
from modeling_fdt.configuration_fdt import get_context_length
from run_scripts.trainer import FDTTrainer, FDTTrainingArguments
from run_scripts.training_data import ContrastiveCollator, DataArguments, load_train_dataset, parse_json


logger = logging.getLogger(__name__)


@dataclass
class ModelArguments:
    """What to train: a checkpoint, or a new model by its configuration."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Checkpoint with its processor."})
    model_config: dict | str | None = field(default=None, metadata={"help": "Fields of FDTConfig, for a new model."})
    image_processor_config: dict | str | None = field(
        default=None, metadata={"help": "Options of FDTImageProcessor, for a new model."}
    )

    def __post_init__(self):
        self.model_config = parse_json("model_config", self.model_config)
        self.image_processor_config = parse_json("image_processor_config", self.image_processor_config)
        if (self.model_name_or_path is None) == (self.model_config is None):
            raise ValueError(
                "give either model_name_or_path or model_config, got "
                f"model_name_or_path={self.model_name_or_path!r} and model_config={self.model_config!r}"
            )
        if self.model_name_or_path is not None and self.image_processor_config is not None:
            raise ValueError("image_processor_config is for new models; a checkpoint brings its own image processor")


def build_model(arguments: ModelArguments) -> tuple[FDTModel, FDTProcessor]:
    """Load a checkpoint with its processor, or make a new model and the processor that fits it."""
    if arguments.model_name_or_path is not None:
        name = arguments.model_name_or_path
        return FDTModel.from_pretrained(name), FDTProcessor.from_pretrained(name)
    config = FDTConfig(**arguments.model_config)
    image_processor = FDTImageProcessor(**(arguments.image_processor_config or {}))
    crop_size, image_size = dict(image_processor.crop_size), getattr(config.vision_config, "image_size", None)
    if image_size is not None and (crop_size["height"], crop_size["width"]) != (image_size, image_size):
        raise ValueError(
            f"image_processor_config crops to {crop_size}, but the vision tower takes {image_size} pixels"
        )
    tokenizer = FDTTokenizer(model_max_length=get_context_length(config.text_config))
    return FDTModel(config), FDTProcessor(image_processor=image_processor, tokenizer=tokenizer)


def parse_arguments(argv: list[str]) -> tuple[ModelArguments, DataArguments, FDTTrainingArguments]:
    """Read one JSON file, or flags."""
    parser = HfArgumentParser((ModelArguments, DataArguments, FDTTrainingArguments), allow_abbrev=False)
    if len(argv) == 1 and argv[0].endswith(".json"):
        return parser.parse_json_file(argv[0])
    return parser.parse_args_into_dataclasses(argv)


def train(
    model_arguments: ModelArguments, data_arguments: DataArguments, training_arguments: FDTTrainingArguments
) -> FDTTrainer:
    """Train, and save the model, its processor and the trainer's state in `training_arguments.output_dir`."""
    set_seed(training_arguments.seed)
    model, processor = build_model(model_arguments)
    collator = ContrastiveCollator(
        processor, data_arguments.image_column, data_arguments.caption_column, data_arguments.augmentation
    )
    trainer = FDTTrainer(
        model=model,
        args=training_arguments,
        data_collator=collator,
        train_dataset=load_train_dataset(data_arguments),
        processing_class=processor,
        distinct_column=data_arguments.distinct_column,
    )
    trainer.train(resume_from_checkpoint=training_arguments.resume_from_checkpoint)
    trainer.save_model()
    trainer.save_state()
    return trainer


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    train(*parse_arguments(sys.argv[1:]))
