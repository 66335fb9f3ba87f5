# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""What evaluation reads from a data set: images, captions, class labels, and a fingerprint of all of them."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from datasets import ClassLabel, Dataset, Image, List, Value
from PIL import Image as PILImage
from tqdm import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from run_scripts.data.decoding import ImageError, decode_image
from run_scripts.data.source import leave_undecoded
from run_scripts.evaluation.embedding import embed_captions, embed_images


def read_images(dataset: Dataset, column: str = "image") -> Iterator[PILImage.Image]:
    """The images of a column, decoded one by one.

    Raises:
        ValueError: an image cannot be read; the message names its row and file.
    """
    files = leave_undecoded(dataset.select_columns([column]), column)
    for row, value in enumerate(tqdm(files, desc="images", disable=None)):
        file = value[column]
        if file is None:
            raise ValueError(f"{column} of row {row} is empty")
        try:
            image = decode_image(file)
        except ImageError as error:
            raise ValueError(f"{column} of row {row}: {error}") from error
        yield image


def embed_all_images(
    model: PreTrainedModel, processor: ProcessorMixin, dataset: Dataset, batch_size: int
) -> torch.Tensor:
    """(num_rows, dim) embeddings of the images of a data set."""
    return embed_images(model, processor, read_images(dataset), batch_size, keep_code_weights=False).embeds


def embed_texts(model: PreTrainedModel, processor: ProcessorMixin, texts: list[str], batch_size: int) -> torch.Tensor:
    """(num_texts, dim) embeddings of texts."""
    return embed_captions(model, processor, texts, batch_size, keep_code_weights=False).embeds


def read_captions(dataset: Dataset, column: str = "caption") -> list[list[str]]:
    """The captions of every row; a row may have any number of them, 0 included.

    A cell is a list of captions, or a string with one caption a line. Blank captions are none.

    Raises:
        ValueError: a cell holds something else, or no row has a caption.
    """
    captions = []
    for row, cell in enumerate(dataset[column]):
        texts = cell.splitlines() if isinstance(cell, str) else [] if cell is None else cell
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"caption_column of row {row} holds {cell!r}, not captions")
        captions.append([text for text in texts if text.strip()])
    if not any(captions):
        raise ValueError(f"caption_column holds no caption in any of {len(captions)} rows")
    return captions


def read_texts(dataset: Dataset, column: str, argument: str) -> list[str]:
    """The strings of a column.

    Args:
        argument: which names the column; for the message.

    Raises:
        ValueError: a row has none.
    """
    texts = dataset[column][:]
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{argument} of row {row} is {text!r}, not text")
    return texts


def read_class_names(dataset: Dataset, column: str) -> list[str]:
    """The class names that a column brings: those of its ClassLabel, or its distinct strings in order.

    Raises:
        ValueError: the column holds numbers without names.
    """
    feature = dataset.features[column]
    if isinstance(feature, ClassLabel):
        return list(feature.names)
    if not _is_text(feature):
        raise ValueError(f"label_column={column!r} holds {feature} without names: give class_names")
    return sorted(set(dataset[column]) - {None})


def read_labels(dataset: Dataset, column: str, class_names: list[str]) -> torch.Tensor:
    """The class of every row as a position in `class_names`, (num_rows,) integers.

    Raises:
        ValueError: a row has no label, or one that is not among the class names.
    """
    feature = dataset.features[column]
    positions = {name: position for position, name in enumerate(class_names)}
    labels = []
    for row, label in enumerate(dataset[column]):
        position = positions.get(label) if _is_text(feature) else label
        if not isinstance(position, int) or not 0 <= position < len(class_names):  # True and False are 1 and 0
            raise ValueError(f"label_column={column!r} of row {row} is {label!r}, none of {len(class_names)} classes")
        labels.append(int(position))
    return torch.tensor(labels)


def _is_text(feature) -> bool:
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def describe_data(source: str, split: str, dataset: Dataset, columns: list[str]) -> dict[str, str | int]:
    """Where data came from and a SHA-256 over the files and values of their columns, in the order of the rows."""
    digest = hashlib.sha256()
    columns = [column for column in columns if column is not None]
    files = dataset.select_columns(columns)
    for column in columns:
        if isinstance(files.features[column], Image):
            files = files.cast_column(column, Image(decode=False))
        elif isinstance(getattr(files.features[column], "feature", None), Image):
            files = files.cast_column(column, List(Image(decode=False)))
    for row in files:
        for column in columns:
            digest.update(_content(row[column]))
            digest.update(b"\0")
    return {"source": source, "split": split, "rows": len(dataset), "sha256": digest.hexdigest()}


def _content(value) -> bytes:
    if isinstance(value, list) and any(isinstance(item, dict) and set(item) == {"bytes", "path"} for item in value):
        return b"\0".join(map(_content, value))
    if isinstance(value, dict) and set(value) == {"bytes", "path"}:
        return Path(value["path"]).read_bytes() if value["bytes"] is None else value["bytes"]
    return json.dumps(value, sort_keys=True).encode()
