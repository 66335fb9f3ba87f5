# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Open a data set by its name on the Hub or its place on disk, as rows to index or as shards to read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, IterableDataset, load_dataset, load_from_disk


# A split in memory, read as a stream, is dealt to at most so many readers.
_NUM_SHARDS_ON_DISK = 256
# How many rows of a stream are read at once.
_ROWS_AT_ONCE = 16


def open_dataset(
    source: str, split: str, *, config_name: str | None = None, streaming: bool = False
) -> Dataset | IterableDataset:
    """One split of a data set.

    Args:
        source: a folder written by `save_to_disk`, or whatever `datasets.load_dataset` takes: a name on the Hub, a
            folder of pictures, a folder of parquet files.
        split: name of the split.
        config_name: which configuration of a data set on the Hub.
        streaming: whether to read rows as they are asked for, which gives an `IterableDataset`.

    Raises:
        ValueError: the data set has no such split, or cannot be opened by that name.
    """
    if (Path(source) / "dataset_dict.json").exists():
        if config_name is not None:
            raise ValueError(f"config_name={config_name!r}: {source!r} was written by save_to_disk and has none")
        splits = load_from_disk(source)
        if split not in splits:
            raise ValueError(f"split={split!r} is not in {source!r}; it has {sorted(splits)}")
        dataset = splits[split]
        return dataset.to_iterable_dataset(min(_NUM_SHARDS_ON_DISK, len(dataset))) if streaming else dataset
    try:
        return load_dataset(source, config_name, split=split, streaming=streaming)
    except (FileNotFoundError, ConnectionError) as error:
        raise ValueError(
            f"{source!r} is no data set on disk, and none that can be had from the Hub: {error}"
        ) from error


def check_columns(dataset: Dataset | IterableDataset, **columns: str | None) -> None:
    """Raise a ValueError for the first column (argument=name) that the data set lacks; None is never missing."""
    names = dataset.column_names
    if names is None:  # some streams tell their columns by their rows alone
        names = list(next(iter(dataset), {}))
    for argument, name in columns.items():
        if name is not None and name not in names:
            raise ValueError(f"{argument}={name!r} is no column of the data set; it has {names}; give --{argument}")


def check_captions(dataset: Dataset | IterableDataset, caption_column: str) -> None:
    """Raise a ValueError for a column that holds neither strings nor lists of them."""
    if dataset.features is None:  # some streams: each caption is checked when it is read
        return
    feature = dataset.features[caption_column]
    if getattr(getattr(feature, "feature", feature), "dtype", None) not in ("string", "large_string", "null"):
        raise ValueError(f"caption_column={caption_column!r} must hold strings or lists of them, it holds {feature}")


class DatasetShards:
    """The shards of a streamed split of `datasets`; pictures are left undecoded.

    Args:
        dataset: the split.
        image_column: its column of pictures.
    """

    def __init__(self, dataset: IterableDataset, image_column: str):
        self.dataset = leave_undecoded(dataset, image_column)

    def __len__(self) -> int:
        return self.dataset.num_shards

    def name(self, shard: int) -> str:
        return f"shard {shard}"

    def read(self, shard: int) -> Iterator[dict[str, Any]]:
        # By `iter`, which reads all rows in every worker process; `__iter__` would deal them to the workers.
        for rows in self.dataset.shard(len(self), shard).iter(batch_size=_ROWS_AT_ONCE):
            yield from split_rows(rows)


def leave_undecoded(dataset: Dataset | IterableDataset, image_column: str) -> Dataset | IterableDataset:
    """The same rows, with pictures as bytes or paths.

    Raises:
        ValueError: the column cannot hold pictures.
    """
    if dataset.features is None:  # some streams of text files: paths, which are decoded as they are
        return dataset
    feature = dataset.features[image_column]
    if isinstance(feature, datasets.Image) or getattr(feature, "dtype", None) in ("string", "binary"):
        return dataset.cast_column(image_column, datasets.Image(decode=False))
    raise ValueError(f"image_column={image_column!r} must hold pictures, their bytes or paths, it holds {feature}")


def split_rows(columns: dict[str, list]) -> Iterator[dict[str, Any]]:
    """Rows of what `datasets` gives for several: a list for every column."""
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))
