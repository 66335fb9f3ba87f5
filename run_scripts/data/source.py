# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Open a data set by its name on the Hub or its place on disk, as rows to index or as shards to read."""

import os
import shutil
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, IterableDataset, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError

from run_scripts.arguments import SourceArguments, TrainingDataArguments, is_tar_pattern
from run_scripts.data.tar_shards import TarShards


# A split in memory, read as a stream, is dealt to at most so many readers.
_NUM_SHARDS_ON_DISK = 256
# Files beside data that say whose they are, and on what terms.
CREDITS = ("ATTRIBUTION*", "LICENSE*", "LICENCE*", "NOTICE*")
# How many rows of a stream are read at once.
_ROWS_AT_ONCE = 16
# By how many rows of a tar shard its columns are known: the first ones may be broken.
_NUM_TOLD = 100
# What the columns are called beyond the door.
_NAMES = {"image_column": "image", "caption_column": "caption"}


def _open_split(source: str, split: str, config_name: str | None, streaming: bool) -> Dataset | IterableDataset:
    """One split of a folder of `save_to_disk`, or of whatever `datasets.load_dataset` takes."""
    if (Path(source) / "dataset_dict.json").exists():
        if config_name is not None:
            raise ValueError(f"config_name={config_name!r}: {source!r} was written by save_to_disk and has none")
        datasets.disable_caching()  # else rows that are chosen or put in order leave files in the user's folder
        splits = load_from_disk(source)
        if split not in splits:
            raise ValueError(f"split={split!r} is not in {source!r}; it has {sorted(splits)}")
        dataset = splits[split]
        return dataset.to_iterable_dataset(min(_NUM_SHARDS_ON_DISK, len(dataset))) if streaming else dataset
    try:
        return load_dataset(source, config_name, split=split, streaming=streaming)
    except DatasetGenerationError as error:
        raise ValueError(f"{source!r} cannot be read: {error.__cause__ or error}") from error
    except (FileNotFoundError, ConnectionError) as error:
        raise ValueError(
            f"{source!r} is no data set on disk, and none that can be had from the Hub: {error}"
        ) from error


def open_source(
    arguments: SourceArguments, split: str | None = None, **columns: str | None
) -> Dataset | IterableDataset:
    """The one door for rows: a split of any source, with the columns `image`, undecoded, and `caption`.

    Args:
        arguments: name the source, its split, the columns of images and, where the class has them, of captions, and
            whether to read a stream.
        split: another split of the same source.
        columns: other columns that must be there, by argument; they keep their names. None is never missing.

    Raises:
        ValueError: there is no such source, split or column, or a column holds something else than it should.
    """
    roles = {"image_column": arguments.image_column, "caption_column": getattr(arguments, "caption_column", None)}
    if roles["image_column"] == roles["caption_column"]:
        raise ValueError(f"image_column and caption_column must differ, got {arguments.image_column!r} for both")
    split, streaming = arguments.split if split is None else split, getattr(arguments, "streaming", False)
    if is_tar_pattern(arguments.dataset):
        dataset = _open_tar_shards(arguments, split, {**roles, **columns}, streaming)
    else:
        dataset = _open_split(arguments.dataset, split, arguments.config_name, streaming)
    check_columns(dataset, **roles, **columns)
    dataset = leave_undecoded(dataset, arguments.image_column)
    names = {roles[role]: name for role, name in _NAMES.items() if roles[role] not in (None, name)}
    for argument, column in columns.items():
        if column in names or column in names.values():
            raise ValueError(
                f"{argument}={column!r} must be another column than {roles}, which are read as {list(_NAMES.values())}"
            )
    # What has one of the two names without being meant makes room.
    in_the_way = [name for name in names.values() if name in (dataset.column_names or ()) and name not in names]
    dataset = dataset.remove_columns(in_the_way) if in_the_way else dataset
    return dataset.rename_columns(names) if names else dataset


def open_pairs(
    arguments: TrainingDataArguments, split: str | None = None
) -> tuple[Dataset | IterableDataset, str | None]:
    """The rows of [`open_source`] with captions that are texts, and what the distinct column is called there.

    Raises:
        ValueError: as `open_source`, or the column of captions holds something else than strings or lists of them.
    """
    name = arguments.distinct_column
    if name is not None and name == arguments.caption_column:
        dataset, name = open_source(arguments, split), "caption"
    else:
        dataset = open_source(arguments, split, distinct_column=name)
    if dataset.features is not None:  # of some streams: each caption is checked when it is read
        feature = dataset.features["caption"]
        if getattr(getattr(feature, "feature", feature), "dtype", None) not in ("string", "large_string", "null"):
            raise ValueError(
                f"caption_column={arguments.caption_column!r} must hold strings or lists of them, it holds {feature}"
            )
    return dataset, name


def _open_tar_shards(
    arguments: SourceArguments, split: str, columns: dict[str, str | None], streaming: bool
) -> Dataset | IterableDataset:
    for name, value, only in (("split", split, "train"), ("image_column", arguments.image_column, "image")):
        if value != only:
            raise ValueError(f"{name} must be {only!r} with tar shards, got {value!r}")
    shards = TarShards(arguments.dataset)
    _check_names({name for row in islice(shards.read(0), _NUM_TOLD) for name in row} - {"__key__"}, columns)
    wanted = tuple(dict.fromkeys(name for name in columns.values() if name not in (None, "image")))
    # `datasets` keeps what it has made of the same arguments: they tell files that have changed apart.
    states = [os.stat(url) for url in shards.urls if os.path.isfile(url)]
    stamp = str([(state.st_size, state.st_mtime_ns) for state in states])
    make = IterableDataset.from_generator if streaming else Dataset.from_generator
    try:
        return make(_read_tar_shards, gen_kwargs={"pattern": arguments.dataset, "columns": wanted, "stamp": stamp})
    except DatasetGenerationError as error:
        raise ValueError(f"{arguments.dataset!r} cannot be read: {error.__cause__}") from error


def _read_tar_shards(pattern: str, columns: tuple[str, ...], stamp: str) -> Iterator[dict[str, Any]]:
    shards = TarShards(pattern)
    for shard in range(len(shards)):
        for row in shards.read(shard):
            image = {"bytes": row["image"], "path": None}
            yield {"image": image, **{name: row.get(name) for name in columns}}


def copy_credits(source: str | Path, output_dir: str | Path) -> None:
    """Copy what the owners of images ask to be kept with them, where a folder of data has such files."""
    for pattern in CREDITS if Path(source).is_dir() else ():
        for path in sorted(Path(source).glob(pattern)):
            shutil.copy(path, output_dir)


def check_columns(dataset: Dataset | IterableDataset, **columns: str | None) -> None:
    """Raise a ValueError for the first column (argument=name) that the data set lacks; None is never missing."""
    names = dataset.column_names
    if names is None:  # some streams tell their columns by their rows alone
        names = list(next(iter(dataset), {}))
    _check_names(names, columns)


def _check_names(names: Collection[str], columns: dict[str, str | None]) -> None:
    for argument, name in columns.items():
        if name is not None and name not in names:
            hint = f"; give --{argument}" if argument.endswith("_column") else ""  # some names are no choice
            raise ValueError(f"{argument}={name!r} is no column of the data set; it has {sorted(names)}{hint}")


class DatasetShards:
    """The shards of a streamed split of `datasets`."""

    def __init__(self, dataset: IterableDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return self.dataset.num_shards

    def name(self, shard: int) -> str:
        return f"shard {shard}"

    def read(self, shard: int) -> Iterator[dict[str, Any]]:
        # By `iter`, which reads all rows in every worker process; `__iter__` would deal them to the workers.
        for rows in self.dataset.shard(len(self), shard).iter(batch_size=_ROWS_AT_ONCE):
            yield from split_rows(rows)


def leave_undecoded(dataset: Dataset | IterableDataset, image_column: str) -> Dataset | IterableDataset:
    """The same rows, with images as bytes or paths.

    Raises:
        ValueError: the column cannot hold images.
    """
    if dataset.features is None:  # some streams of text files: paths, which are decoded as they are
        return dataset
    feature = dataset.features[image_column]
    is_file = isinstance(feature, dict) and set(feature) == {"bytes", "path"}
    if is_file or isinstance(feature, datasets.Image) or getattr(feature, "dtype", None) in ("string", "binary"):
        return dataset.cast_column(image_column, datasets.Image(decode=False))
    raise ValueError(f"image_column={image_column!r} must hold images, their bytes or paths, it holds {feature}")


def split_rows(columns: dict[str, list]) -> Iterator[dict[str, Any]]:
    """Rows of what `datasets` gives for several: a list for every column."""
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))
