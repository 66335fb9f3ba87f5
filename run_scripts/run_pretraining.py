# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Train an FDT model on images with captions.

    python -m run_scripts.run_pretraining run_scripts/configs/emoji_two_styles.json
    python -m run_scripts.run_pretraining --dataset ... --model_config '{"codebook_size": 16384}' --output_dir ...

A JSON file holds the same names as the flags; either way an unknown one is an error.
"""

import json
import logging
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import kornia.augmentation
import numpy as np
import torch
from datasets import Dataset, load_dataset, load_from_disk
from torch import nn
from torch.utils.data import Sampler
from transformers import BatchFeature, HfArgumentParser, Trainer, TrainingArguments, set_seed

from modeling_fdt import FDTConfig, FDTImageProcessor, FDTModel, FDTProcessor, FDTTokenizer
from modeling_fdt.configuration_fdt import get_context_length


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


@dataclass
class DataArguments:
    """What to train on, and how a picture is varied from visit to visit."""

    dataset: str = field(metadata={"help": "A folder written by save_to_disk, or what load_dataset takes."})
    image_column: str = field(default="image", metadata={"help": "Column of pictures."})
    caption_column: str = field(
        default="caption", metadata={"help": "Column of captions. Of a list, one is drawn at every visit."}
    )
    distinct_column: str | None = field(
        default=None, metadata={"help": "Column whose values must all differ within a global batch."}
    )
    augmentation: dict | str | None = field(
        default=None,
        metadata={"help": "Classes of kornia.augmentation in their order, each with its arguments."},
    )

    def __post_init__(self):
        self.augmentation = parse_json("augmentation", self.augmentation)


@dataclass
class FDTTrainingArguments(TrainingArguments):
    """transformers' own, with the defaults that a contrastive loss over image-text pairs needs."""

    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator reads the columns."})
    dataloader_drop_last: bool = field(default=True, metadata={"help": "The loss depends on the batch size."})
    ddp_find_unused_parameters: bool = field(default=False, metadata={"help": "Every parameter takes part."})


def parse_json(name: str, value: dict | str | None) -> dict | None:
    """A dict as it is, or as JSON text, the form that flags have."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"{name} must be a JSON object, got {value!r}: {error}") from error
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{name} must be a JSON object, got {value!r}")
    return value


class DistinctBatchSampler(Sampler[int]):
    """Orders rows so that every block of `block_size` consecutive ones holds distinct values.

    Captions that repeat within a batch are false negatives to a contrastive loss. With `block_size` the global batch,
    the order stays right on several processes, which take turns in reading batches from it. An epoch has as many
    blocks as can be filled; which rows are left out changes with the epoch.

    Args:
        values: one value for each row.
        block_size: number of rows in a global batch.
        seed: of the order, together with the epoch.

    Raises:
        ValueError: there are fewer distinct values than a block holds.
    """

    def __init__(self, values: Sequence, block_size: int, seed: int):
        self.values = np.unique(np.asarray(values), return_inverse=True)[1]  # (num_rows,) as integers
        self.block_size, self.seed, self.epoch = block_size, seed, 0
        counts = np.bincount(self.values)
        if len(counts) < block_size:
            raise ValueError(f"a global batch of {block_size} needs as many distinct values, got {len(counts)}")
        # A value can be once in each block, so n blocks can use min(count, n) of its rows.
        self.num_blocks = next(
            n for n in range(len(self.values) // block_size, 0, -1) if np.minimum(counts, n).sum() >= n * block_size
        )

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_blocks * self.block_size

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng((self.seed, self.epoch))
        rows = generator.permutation(len(self.values))
        ranks = generator.permutation(self.values.max() + 1)  # a random order of the values
        rows = rows[np.argsort(ranks[self.values[rows]], kind="stable")]  # equal values now stand side by side
        _, starts, counts = np.unique(ranks[self.values[rows]], return_index=True, return_counts=True)
        rows = rows[np.arange(len(rows)) - np.repeat(starts, counts) < self.num_blocks][: len(self)]
        # Dealt in turn to the blocks, neighbours never meet: no value has more rows than there are blocks.
        blocks = rows.reshape(self.block_size, self.num_blocks).T
        yield from generator.permuted(blocks, axis=1).ravel().tolist()


class ContrastiveCollator:
    """Turns rows into model inputs: one caption for each picture, pictures augmented as one batch.

    Args:
        processor: gives the pictures' size, mean and standard deviation, and tokenises.
        image_column, caption_column: names in the rows.
        augmentation: classes of kornia.augmentation in their order, each with its arguments; they see RGB in [0, 1]
            and must end in the processor's crop size. Without it the pictures are processed as in evaluation.

    Returns (when called):
        `pixel_values` of shape (batch_size, 3, height, width), and `input_ids` and `attention_mask` of shape
        (batch_size, longest caption).
    """

    def __init__(self, processor: FDTProcessor, image_column: str, caption_column: str, augmentation: dict | None):
        self.processor, self.image_column, self.caption_column = processor, image_column, caption_column
        self.augmentation = None if augmentation is None else build_augmentation(augmentation)

    def __call__(self, rows: list[dict]) -> BatchFeature:
        captions = [row[self.caption_column] for row in rows]
        captions = [random.choice(caption) if isinstance(caption, list) else caption for caption in captions]
        images = [row[self.image_column] for row in rows]
        if self.augmentation is None:
            return self.processor(images=images, text=captions, return_tensors="pt")
        inputs = self.processor(text=captions, return_tensors="pt")
        inputs["pixel_values"] = self.augment(images)
        return inputs

    def augment(self, images: list) -> torch.Tensor:
        image_processor = self.processor.image_processor
        pixels = [torch.from_numpy(image_processor.process_image(image, do_convert_rgb=True)) for image in images]
        pixels = [image.float() / 255 for image in pixels]
        same_size = len({image.shape for image in pixels}) == 1
        batches = [torch.stack(pixels)] if same_size else [image[None] for image in pixels]
        pixels = torch.cat([self.augmentation(batch) for batch in batches])
        size = (image_processor.crop_size["height"], image_processor.crop_size["width"])
        if tuple(pixels.shape[2:]) != size:
            raise ValueError(f"augmentation must end in pictures of {size}, got {tuple(pixels.shape[2:])}")
        mean, std = (torch.tensor(v)[:, None, None] for v in (image_processor.image_mean, image_processor.image_std))
        return (pixels - mean) / std


def build_augmentation(augmentation: dict) -> nn.Module:
    """The named classes of kornia.augmentation, one after the other."""
    for name in augmentation:
        if not isinstance(getattr(kornia.augmentation, name, None), type):
            raise ValueError(f"augmentation names {name!r}, which is no class of kornia.augmentation")
    steps = [getattr(kornia.augmentation, name)(**arguments) for name, arguments in augmentation.items()]
    return kornia.augmentation.AugmentationSequential(*steps)


class FDTTrainer(Trainer):
    """Trainer with batches distinct in a column, `logit_scale` and batch norms not decayed, active codes logged."""

    def __init__(self, *args, distinct_column: str | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.distinct_column = distinct_column

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        if self.distinct_column is None:
            return super()._get_train_sampler(train_dataset)
        dataset = self.train_dataset if train_dataset is None else train_dataset
        block_size = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return DistinctBatchSampler(dataset[self.distinct_column][:], block_size, self.args.seed)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        # Trainer itself spares biases and layer norms.
        spared = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
        return [name for name in super().get_decay_parameter_names(model) if name not in spared | {"logit_scale"}]

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        self.active_codes = {
            "active_codes_per_image": count_active(outputs.image_code_weights),
            "active_codes_per_caption": count_active(outputs.text_code_weights),
        }
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            logs.update({name: count.item() for name, count in self.active_codes.items()})
            logs["logit_scale"] = self.accelerator.unwrap_model(self.model).logit_scale.item()
        super().log(logs, *args, **kwargs)


def count_active(code_weights: torch.Tensor) -> torch.Tensor:
    """Mean number of codes above 0 in a row of (batch_size, codebook_size) weights, a scalar on their device."""
    return (code_weights > 0).sum(dim=-1).float().mean()


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


def load_train_dataset(arguments: DataArguments) -> Dataset:
    """The split `train`, with the columns that the arguments name."""
    is_saved = (Path(arguments.dataset) / "dataset_dict.json").exists()
    dataset = (load_from_disk if is_saved else load_dataset)(arguments.dataset)["train"]
    for name in ("image_column", "caption_column", "distinct_column"):
        column = getattr(arguments, name)
        if column is not None and column not in dataset.column_names:
            raise ValueError(f"{name}={column!r} is no column of the dataset; it has {dataset.column_names}")
    return dataset


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
