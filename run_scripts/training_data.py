# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Images with captions on their way to the model: which are read, in which order, what is skipped, batches."""

import json
import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset as TorchIterableDataset
from torch.utils.data import Sampler, get_worker_info
from transformers import BatchFeature, HfArgumentParser

from modeling_fdt import FDTProcessor
from run_scripts.augmentation import Augmentation
from run_scripts.data_source import (
    DatasetShards,
    TarShards,
    check_columns,
    decode_picture,
    is_tar_pattern,
    leave_undecoded,
    open_dataset,
    split_rows,
)


logger = logging.getLogger(__name__)

# The share of broken pairs or shards is judged when this many have been read.
MIN_PAIRS_TO_JUDGE = 500
MIN_SHARDS_TO_JUDGE = 10
_MAX_WORKERS = 1024
_MAX_WARNINGS = 10


@dataclass
class DataArguments:
    """What to train on, and how a picture is varied from visit to visit."""

    dataset: str = field(
        metadata={"help": "A folder of save_to_disk, what load_dataset takes, or tar shards: a/{000..331}.tar."}
    )
    config_name: str | None = field(default=None, metadata={"help": "Configuration of a data set on the Hub."})
    split: str = field(default="train", metadata={"help": "Split to train on."})
    streaming: bool = field(default=False, metadata={"help": "Read rows in passing; tar shards always are."})
    shuffle_buffer: int = field(default=2000, metadata={"help": "Pairs of a stream held to draw from, per worker."})
    image_column: str = field(default="image", metadata={"help": "Column of pictures."})
    caption_column: str = field(
        default="caption", metadata={"help": "Column of captions. Of a list, one is drawn at every visit."}
    )
    distinct_column: str | None = field(
        default=None, metadata={"help": "Column whose values must all differ within a global batch."}
    )
    max_broken_fraction: float = field(
        default=0.1, metadata={"help": "The run stops when a larger share of the data cannot be used."}
    )
    augmentation: dict | str | None = field(
        default=None,
        metadata={"help": "Classes of kornia.augmentation in their order, each with its arguments."},
    )
    augment_on_device: bool = field(
        default=False, metadata={"help": "All steps but the crop on the training device, not by the workers."}
    )
    eval_split: str | None = field(default=None, metadata={"help": "Split for retrieval while training."})
    eval_dataset: str | None = field(default=None, metadata={"help": "Where eval_split is, if not in `dataset`."})

    def __post_init__(self):
        self.augmentation = parse_json("augmentation", self.augmentation)
        if not 0 <= self.max_broken_fraction <= 1:
            raise ValueError(f"max_broken_fraction must be from 0 to 1, got {self.max_broken_fraction}")
        if self.shuffle_buffer < 1:
            raise ValueError(f"shuffle_buffer must be at least 1, got {self.shuffle_buffer}")
        if self.augment_on_device and self.augmentation is None:
            raise ValueError("augment_on_device needs augmentation, got none")
        if self.eval_dataset is not None and self.eval_split is None:
            raise ValueError(f"eval_dataset={self.eval_dataset!r} needs eval_split, got none")
        if is_tar_pattern(self.dataset):
            self._check_tar_options()
        if self.is_stream and self.distinct_column is not None:
            raise ValueError(f"distinct_column={self.distinct_column!r} needs rows to choose from, not a stream")

    @property
    def is_stream(self) -> bool:
        return self.streaming or is_tar_pattern(self.dataset)

    def _check_tar_options(self) -> None:
        for name, only in (("image_column", "image"), ("config_name", None), ("split", "train")):
            if getattr(self, name) != only:
                raise ValueError(f"{name} must be {only!r} with tar shards, got {getattr(self, name)!r}")
        if self.eval_split is not None and self.eval_dataset is None:
            raise ValueError(f"eval_split={self.eval_split!r} needs eval_dataset: tar shards have no splits")


def parse_file_or_flags(argument_classes: tuple[type, ...], argv: list[str]) -> tuple:
    """Dataclasses of arguments from one JSON file, or from flags; an unknown name is an error either way."""
    parser = HfArgumentParser(argument_classes, allow_abbrev=False)
    if not (argv and argv[0].endswith(".json")):
        return parser.parse_args_into_dataclasses(argv)
    if len(argv) > 1:
        raise ValueError(f"give one JSON file or flags, not both, got {argv[0]} and {argv[1:]}")
    return parser.parse_json_file(argv[0])


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


class DataCounts:
    """How many pairs and shards were read, and how many of them could not be used, and why.

    Worker processes count into memory that they share with the process that started them.

    Args:
        max_broken_fraction: the share of broken pairs, or of unreadable shards, above which reading stops.
    """

    REASONS = ("undecodable_image", "missing_image", "missing_caption", "unreadable_shard")

    def __init__(self, max_broken_fraction: float):
        self.max_broken_fraction = max_broken_fraction
        self.names = ("pairs_read", "shards_read", *(f"skipped_{reason}" for reason in self.REASONS))
        # A row for each worker, so that none writes where another does.
        self._counts = torch.zeros(_MAX_WORKERS, len(self.names), dtype=torch.int64).share_memory_()

    def totals(self) -> dict[str, int]:
        """Over all workers of this process, by name."""
        return dict(zip(self.names, self._counts.sum(dim=0).tolist(), strict=True))

    def add(self, name: str) -> None:
        worker = get_worker_info()
        self._counts[0 if worker is None else worker.id, self.names.index(name)] += 1

    def add_broken(self, reason: str, where: str, error: Exception | None = None) -> None:
        """Count a pair or shard that cannot be used.

        Raises:
            ValueError: too large a share of the data is broken.
        """
        self.add(f"skipped_{reason}")
        totals = self.totals()
        if totals[f"skipped_{reason}"] <= _MAX_WARNINGS:
            logger.warning("skipped %s: %s%s", where, reason, "" if error is None else f" ({error})")
        broken = {name: number for name, number in totals.items() if name.startswith("skipped_") and number > 0}
        num_shards = broken.get("skipped_unreadable_shard", 0)
        num_pairs = sum(broken.values()) - num_shards
        for kind, number, num_read, minimum in (
            ("pairs", num_pairs, totals["pairs_read"], MIN_PAIRS_TO_JUDGE),
            ("shards", num_shards, totals["shards_read"], MIN_SHARDS_TO_JUDGE),
        ):
            if num_read >= minimum and number > self.max_broken_fraction * num_read:
                raise ValueError(
                    f"{number} of {num_read} {kind} are broken, more than max_broken_fraction="
                    f"{self.max_broken_fraction}; {broken}; the last is {where}"
                )

    def make_pair(self, row: dict[str, Any], image_column: str, caption_column: str, where: str) -> dict | None:
        """The decoded picture and the captions of a row under the same names; None, counted, if it has not both.

        Raises:
            ValueError: captions are no strings, or too large a share of the data is broken.
        """
        self.add("pairs_read")
        captions = row.get(caption_column)
        captions = list(captions) if isinstance(captions, list | tuple | np.ndarray) else [captions]
        if not all(isinstance(caption, str | None) for caption in captions):
            raise ValueError(f"caption_column={caption_column!r} must hold strings or lists of them, got {captions!r}")
        captions = [caption for caption in captions if caption is not None and caption.strip()]
        if not captions:
            return self.add_broken("missing_caption", where)
        if row.get(image_column) is None:
            return self.add_broken("missing_image", where)
        try:
            image = decode_picture(row[image_column])
            if image.mode in ("I", "F"):
                raise ValueError(f"a picture of mode {image.mode} has no defined range")
        except Exception as error:  # decoders of broken files raise whatever they stumble over
            return self.add_broken("undecodable_image", where, error)
        return {image_column: image, caption_column: captions}


class PairDataset(TorchDataset):
    """Rows of a data set as pairs. In the place of a row that cannot be used stands the next one that can.

    So a batch always has its size, and only pairs that differ from each other: the next one that is not in this
    process's batch, in `distinct_column` where one is named.

    Args:
        dataset: rows.
        image_column, caption_column, distinct_column: names in the rows.
        counts: takes down what is skipped, at every visit.

    Raises:
        ValueError (when rows are read): too many rows are broken.
    """

    def __init__(
        self, dataset: Dataset, image_column: str, caption_column: str, distinct_column: str | None, counts: DataCounts
    ):
        self.image_column, self.caption_column, self.counts = image_column, caption_column, counts
        self.dataset = leave_undecoded(dataset.select_columns([image_column, caption_column]), image_column)
        self.distinct_values = range(len(dataset)) if distinct_column is None else dataset[distinct_column][:]
        self.distinct_column = distinct_column

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int | str) -> dict[str, Any] | Sequence:
        """A pair by its number, or the values of the distinct column by its name."""
        if isinstance(index, str):
            return self.distinct_values if index == self.distinct_column else self.dataset[index]
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """The pairs of a batch."""
        taken = {self.distinct_values[index] for index in indices}
        rows = split_rows(self.dataset[indices])
        return [
            self._read(row, index) or self._read_next(index, taken) for row, index in zip(rows, indices, strict=True)
        ]

    def _read(self, row: dict[str, Any], index: int) -> dict[str, Any] | None:
        return self.counts.make_pair(row, self.image_column, self.caption_column, f"row {index}")

    def _read_next(self, index: int, taken: set) -> dict[str, Any]:
        for other in chain(range(index + 1, len(self)), range(index)):
            if self.distinct_values[other] not in taken:
                pair = self._read(self.dataset[other], other)
                if pair is not None:
                    taken.add(self.distinct_values[other])
                    return pair
        raise ValueError(f"row {index} cannot be used, and there is no other that is not in its batch")


class PairStream(TorchIterableDataset):
    """Shards as pairs, epoch after epoch without an end, split over all workers of all processes.

    In every epoch the shards are put into a new order and dealt to the readers (a reader is one worker of one
    process), each of which draws its pairs from a buffer of the coming ones. So an epoch holds every pair once, and
    nothing waits for a reader whose shards are longer: no batch is left over, and no process stops before another. The
    order depends on the seed and the numbers of processes and workers alone, so that a run can be resumed by skipping.

    Args:
        shards: where to read.
        image_column, caption_column: names in the rows.
        counts: takes down what is skipped.
        shuffle_buffer: how many pairs, not yet decoded, a reader draws from.
        seed: of the order.
        num_processes, process_index: which part is this process's.

    Raises:
        ValueError (when it is read): there are fewer shards than readers, or too much of the data is broken.
    """

    def __init__(
        self,
        shards: DatasetShards | TarShards,
        image_column: str,
        caption_column: str,
        counts: DataCounts,
        shuffle_buffer: int,
        seed: int,
        num_processes: int = 1,
        process_index: int = 0,
    ):
        self.shards, self.counts, self.shuffle_buffer, self.seed = shards, counts, shuffle_buffer, seed
        self.image_column, self.caption_column = image_column, caption_column
        self.num_processes, self.process_index = num_processes, process_index

    def check_num_readers(self, num_workers: int) -> None:
        num_readers = self.num_processes * max(num_workers, 1)
        if len(self.shards) < num_readers:
            raise ValueError(
                f"the data set has {len(self.shards)} shards for {num_readers} readers ({self.num_processes} "
                f"processes with dataloader_num_workers={num_workers}); every reader needs a shard of its own"
            )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        num_workers, worker_id = (0, 0) if worker is None else (worker.num_workers, worker.id)
        self.check_num_readers(num_workers)
        reader = self.process_index * max(num_workers, 1) + worker_id
        for epoch in count():
            pairs = self.read_epoch(epoch, reader, self.num_processes * max(num_workers, 1))
            first = next(pairs, None)
            if first is None:
                raise ValueError(f"an epoch ended without a pair to train on: {self.counts.totals()}")
            yield from chain([first], pairs)

    def read_epoch(self, epoch: int, reader: int, num_readers: int) -> Iterator[dict[str, Any]]:
        """One reader's part of one epoch."""
        from webdataset.filters import shuffle

        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.shards))[reader::num_readers]
        rows = chain.from_iterable(map(self._read_shard, order.tolist()))
        generator = random.Random(f"{self.seed} {epoch} {reader}")
        for where, row in shuffle(self.shuffle_buffer, initial=self.shuffle_buffer, rng=generator)(rows):
            pair = self.counts.make_pair(row, self.image_column, self.caption_column, where)
            if pair is not None:
                yield pair

    def _read_shard(self, shard: int) -> Iterator[tuple[str, dict[str, Any]]]:
        self.counts.add("shards_read")
        name = self.shards.name(shard)
        try:
            for number, row in enumerate(self.shards.read(shard)):
                yield f"{row.get('__key__', f'pair {number}')} of {name}", row
        except Exception as error:  # network, file system and file formats each have their own
            self.counts.add_broken("unreadable_shard", name, error)


def load_train_dataset(
    arguments: DataArguments, seed: int = 0, num_processes: int = 1, process_index: int = 0
) -> PairDataset | PairStream:
    """The pairs that the arguments name.

    Args:
        arguments: where they are.
        seed: of a stream's order.
        num_processes, process_index: which part of a stream is read.

    Raises:
        ValueError: a split, a shard or a column is missing.
    """
    counts = DataCounts(arguments.max_broken_fraction)
    columns = (arguments.image_column, arguments.caption_column)
    if is_tar_pattern(arguments.dataset):
        shards = TarShards(arguments.dataset)
    else:
        dataset = open_dataset(
            arguments.dataset, arguments.split, config_name=arguments.config_name, streaming=arguments.streaming
        )
        names = ("image_column", "caption_column", "distinct_column")
        check_columns(dataset, **{name: getattr(arguments, name) for name in names})
        if not arguments.streaming:
            return PairDataset(dataset, *columns, arguments.distinct_column, counts)
        shards = DatasetShards(dataset, arguments.image_column)
    return PairStream(shards, *columns, counts, arguments.shuffle_buffer, seed, num_processes, process_index)


def load_eval_dataset(arguments: DataArguments) -> Dataset:
    """The rows to evaluate on, pictures decoded when read; of several captions the first.

    Raises:
        ValueError: there are none, a column is missing, or a row has no caption.
    """
    image_column, caption_column = arguments.image_column, arguments.caption_column
    is_same = arguments.eval_dataset is None
    dataset = open_dataset(
        arguments.dataset if is_same else arguments.eval_dataset,
        arguments.eval_split,
        config_name=arguments.config_name if is_same else None,
    )
    check_columns(dataset, image_column=image_column, caption_column=caption_column)
    captions = [
        caption[0] if isinstance(caption, list) and caption else caption for caption in dataset[caption_column]
    ]
    if not captions or not all(isinstance(caption, str) and caption.strip() for caption in captions):
        raise ValueError(f"eval_split={arguments.eval_split!r} must hold rows, each with a caption")
    dataset = dataset.select_columns([image_column]).cast_column(image_column, datasets.Image())
    return dataset.add_column(caption_column, captions)


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

    What is drawn comes from the generators of `random` and torch, which [`FDTTrainer`] seeds for every batch.

    Args:
        processor: gives the pictures' size, mean and standard deviation, and tokenises.
        image_column, caption_column: names in the rows.
        augmentation: the steps of [`Augmentation`]. Without it the pictures are processed as in evaluation.
        augment_on_device: leave all but the crop to the trainer: `pixel_values` are then bytes, and
            `augmentation_seed` comes with them.

    Returns (when called):
        `pixel_values` of shape (batch_size, 3, height, width), and `input_ids` and `attention_mask` of shape
        (batch_size, longest caption).
    """

    def __init__(
        self,
        processor: FDTProcessor,
        image_column: str,
        caption_column: str,
        augmentation: dict | None,
        augment_on_device: bool = False,
    ):
        self.processor, self.image_column, self.caption_column = processor, image_column, caption_column
        self.augmentation = None if augmentation is None else Augmentation(augmentation, processor.image_processor)
        self.augment_on_device = augment_on_device

    def __call__(self, rows: list[dict]) -> BatchFeature:
        captions = [row[self.caption_column] for row in rows]
        captions = [random.choice(caption) if isinstance(caption, list) else caption for caption in captions]
        images = [row[self.image_column] for row in rows]
        if self.augmentation is None:
            return self.processor(images=images, text=captions, return_tensors="pt", padding=True, truncation=True)
        inputs = self.processor(text=captions, return_tensors="pt", padding=True, truncation=True)
        if self.augment_on_device:
            seed = draw_seed()
            inputs["pixel_values"], inputs["augmentation_seed"] = self.augmentation.cut(images, seed), seed
        else:
            inputs["pixel_values"] = self.augment(images)
        return inputs

    def augment(self, images: list[Image.Image]) -> torch.Tensor:
        """Pictures cropped, varied and normalised: (batch_size, 3, height, width)."""
        seed = draw_seed()
        return self.augmentation.vary(self.augmentation.cut(images, seed), seed)


def draw_seed() -> int:
    """A number drawn by torch's generator."""
    return int(torch.randint(2**62, ()))
