# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Images with captions on their way to the model: where they come from, their order, augmentation, batches."""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import kornia.augmentation
import numpy as np
import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import Sampler
from transformers import BatchFeature

from modeling_fdt import FDTProcessor
from run_scripts.data_source import check_columns, open_dataset


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


def load_train_dataset(arguments: DataArguments) -> Dataset:
    """The split `train`, with the columns that the arguments name."""
    dataset = open_dataset(arguments.dataset, "train")
    names = ("image_column", "caption_column", "distinct_column")
    check_columns(dataset, **{name: getattr(arguments, name) for name in names})
    return dataset


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
