# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Open a data set by its name on the Hub or its place on disk."""

from pathlib import Path

from datasets import Dataset, IterableDataset, load_dataset, load_from_disk


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
        ValueError: the data set has no such split.
    """
    if (Path(source) / "dataset_dict.json").exists():
        splits = load_from_disk(source)
        if split not in splits:
            raise ValueError(f"split={split!r} is not in {source!r}; it has {sorted(splits)}")
        return splits[split].to_iterable_dataset() if streaming else splits[split]
    return load_dataset(source, config_name, split=split, streaming=streaming)


def check_columns(dataset: Dataset | IterableDataset, **columns: str | None) -> None:
    """Raise a ValueError for the first column (argument=name) that the data set lacks; None is never missing."""
    for argument, name in columns.items():
        if name is not None and name not in dataset.column_names:
            raise ValueError(f"{argument}={name!r} is no column of the data set; it has {dataset.column_names}")
