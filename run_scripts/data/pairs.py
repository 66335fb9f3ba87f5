# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Images with captions on their way to the model: which are read, in which order, what is skipped, batches."""

import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, count
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset as TorchIterableDataset
from torch.utils.data import get_worker_info

from run_scripts.arguments import DataArguments, PairArguments, is_tar_pattern
from run_scripts.data.decoding import ImageError, decode_image, decode_rows
from run_scripts.data.scenes import SceneDataset, is_world
from run_scripts.data.source import DatasetShards, check_columns, open_pairs, open_source, split_rows
from run_scripts.data.tar_shards import TarShards


logger = logging.getLogger(__name__)

# The share of broken pairs or shards is judged when this many have been read.
MIN_PAIRS_TO_JUDGE = 500
MIN_SHARDS_TO_JUDGE = 10
_MAX_WORKERS = 1024
_MAX_WARNINGS = 10
# A reader whose shards held no pair in so many epochs on end gives up.
_MAX_EMPTY_EPOCHS = 20


class BrokenPair(Exception):
    """A row that cannot be used.

    Args:
        reason: one of `DataCounts.REASONS`.
        error: what the decoder said.
    """

    def __init__(self, reason: str, error: Exception | None = None):
        super().__init__(reason, error)
        self.reason, self.error = reason, error


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

    @contextmanager
    def counting(self, where: str) -> Iterator[None]:
        """Count the pair that is made in this context, and why if it is broken.

        Raises:
            BrokenPair: as it was raised in the context.
            ValueError: too large a share of the data is broken.
        """
        self.add("pairs_read")
        try:
            yield
        except BrokenPair as broken:
            self.add_broken(broken.reason, where, broken.error)
            raise


def make_pair(row: dict[str, Any]) -> dict[str, Any]:
    """The decoded `image` of a row and the list of its captions as `caption`.

    Raises:
        BrokenPair: the row has no caption, or no image that can be decoded.
    """
    captions = row.get("caption")
    captions = list(captions) if isinstance(captions, list | tuple | np.ndarray) else [captions]
    captions = [caption for caption in captions if isinstance(caption, str) and caption.strip()]
    if not captions:
        raise BrokenPair("missing_caption")
    if row.get("image") is None:
        raise BrokenPair("missing_image")
    try:
        image = decode_image(row["image"])
    except ImageError as error:
        raise BrokenPair("undecodable_image", error) from error
    return {"image": image, "caption": captions}


class PairDataset(TorchDataset):
    """Rows of a data set as pairs. An unusable row is replaced by the next usable one.

    So a batch always has its size, and only pairs that differ from each other: the next one that is not in this
    process's batch, in `distinct_column` where one is named.

    Args:
        dataset: rows as [`open_source`] gives them.
        distinct_column: name in the rows.
        counts: takes down what is skipped, at every visit.

    Raises:
        ValueError (when rows are read): too many rows are broken.
    """

    def __init__(self, dataset: Dataset, distinct_column: str | None, counts: DataCounts):
        self.dataset, self.counts = dataset.select_columns(["image", "caption"]), counts
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
        pairs = []
        for row, index in zip(rows, indices, strict=True):
            try:
                pairs.append(self._read(row, index))
            except BrokenPair:
                pairs.append(self._read_next(index, taken))
        return pairs

    def _read(self, row: dict[str, Any], index: int) -> dict[str, Any]:
        with self.counts.counting(f"row {index}"):
            return make_pair(row)

    def _read_next(self, index: int, taken: set) -> dict[str, Any]:
        for other in chain(range(index + 1, len(self)), range(index)):
            if self.distinct_values[other] not in taken:
                try:
                    pair = self._read(self.dataset[other], other)
                except BrokenPair:
                    continue
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
        counts: DataCounts,
        shuffle_buffer: int,
        seed: int,
        num_processes: int = 1,
        process_index: int = 0,
    ):
        self.shards, self.counts, self.shuffle_buffer, self.seed = shards, counts, shuffle_buffer, seed
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
        num_readers, num_empty = self.num_processes * max(num_workers, 1), 0
        for epoch in count():
            pairs = self.read_epoch(epoch, reader, num_readers)
            first = next(pairs, None)
            if first is not None:
                num_empty = 0
                yield from chain([first], pairs)
                continue
            num_empty += 1  # other readers may have had all that is good; the next epoch deals anew
            if num_readers == 1 or num_empty == _MAX_EMPTY_EPOCHS:
                raise ValueError(f"an epoch ended without a pair to train on: {self.counts.totals()}")

    def read_epoch(self, epoch: int, reader: int, num_readers: int) -> Iterator[dict[str, Any]]:
        """One reader's part of one epoch."""
        from webdataset.filters import shuffle

        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.shards))[reader::num_readers]
        rows = chain.from_iterable(map(self._read_shard, order.tolist()))
        generator = random.Random(f"{self.seed} {epoch} {reader}")
        for where, row in shuffle(self.shuffle_buffer, initial=self.shuffle_buffer, rng=generator)(rows):
            try:
                with self.counts.counting(where):
                    pair = make_pair(row)
            except BrokenPair:
                continue
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
) -> PairDataset | PairStream | SceneDataset:
    """The pairs that the arguments name.

    Args:
        arguments: where they are.
        seed: of a stream's order, or of scenes.
        num_processes, process_index: which part of a stream is read.

    Raises:
        ValueError: a split, a shard or a column is missing.
    """
    counts = DataCounts(arguments.max_broken_fraction)
    if arguments.split == "train" and is_world(arguments.dataset):
        scenes = SceneDataset(arguments.dataset, seed, counts)
        if arguments.streaming:
            raise ValueError("streaming is for what is read; scenes are made when they are asked for")
        names = ("image_column", "caption_column", "distinct_column")
        check_columns(scenes, **{name: getattr(arguments, name) for name in names})
        return scenes
    if is_tar_pattern(arguments.dataset):
        # Not through `datasets`, which would end at the first damaged shard; here it is counted.
        shards = TarShards(arguments.dataset, arguments.caption_column)
    else:
        dataset, distinct_column = open_pairs(arguments)
        if not arguments.streaming:
            return PairDataset(dataset, distinct_column, counts)
        shards = DatasetShards(dataset)
    return PairStream(shards, counts, arguments.shuffle_buffer, seed, num_processes, process_index)


def load_eval_dataset(arguments: DataArguments) -> Dataset:
    """The rows to evaluate on, images decoded when read; of several captions the first.

    Raises:
        ValueError: there are none, a column is missing, or a row has no caption.
    """
    is_same = arguments.validation_dataset is None
    source = PairArguments(
        dataset=arguments.dataset if is_same else arguments.validation_dataset,
        config_name=arguments.config_name if is_same else None,
        split=arguments.validation_split,
        image_column=arguments.image_column,
        caption_column=arguments.caption_column,
    )
    dataset = open_source(source).select_columns(["image", "caption"])
    captions = [caption[0] if isinstance(caption, list) and caption else caption for caption in dataset["caption"]]
    if not captions or not all(isinstance(caption, str) and caption.strip() for caption in captions):
        raise ValueError(f"validation_split={arguments.validation_split!r} must hold rows, each with a caption")
    return dataset.remove_columns("caption").add_column("caption", captions).with_transform(decode_rows)
