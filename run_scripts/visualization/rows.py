# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""The rows of a data set as the gallery takes them in: those that cannot be used are left out by name."""

import logging
from typing import Any

import torch
from datasets import ClassLabel, Dataset, IterableDataset
from transformers import BatchFeature

from modeling_fdt import FDTProcessor
from run_scripts.data.captions import cut_caption
from run_scripts.data.decoding import decode_image
from run_scripts.data.source import split_rows
from run_scripts.visualization.coherence import Label, content_words


logger = logging.getLogger(__name__)

_MOST_NAMED = 20  # of the rows that are left out; the others are only counted


class RowReader:
    """Makes rows and model inputs of what a data set gives.

    Attributes:
        num_read: rows so far, those left out included.
        num_left_out: those that could not be used.
        last_reason: why the last of them could not.

    Args:
        dataset: of [`open_source`], for the names of its categories.
        processor: that of the model.
        category_column: of categories, if there are any; of lists of captions the first counts.
    """

    def __init__(
        self,
        dataset: Dataset | IterableDataset,
        processor: FDTProcessor,
        category_column: str | None,
    ):
        self.processor = processor
        self.category_column = category_column
        self.num_read, self.num_left_out, self.last_reason = 0, 0, ""
        feature = (dataset.features or {}).get(category_column)
        self._category_names = feature.names if isinstance(feature, ClassLabel) else None

    def read(self, columns: dict[str, list]) -> tuple[list[int], list[dict[str, Any]], BatchFeature]:
        """The rows of a batch that can be used: numbers in the data set, contents (`image`, `caption`, `label`), and
        the model's inputs of all of them."""
        numbers, rows, pixel_values = [], [], []
        for values in split_rows(columns):
            try:
                row = self._read_row(values)
                pixel_values.append(self.processor(images=[row["image"]], return_tensors="pt")["pixel_values"])
            except ValueError as error:
                self._leave_out(str(error))
            else:
                numbers.append(self.num_read)
                rows.append(row)
            self.num_read += 1
        if not rows:
            return numbers, rows, BatchFeature()
        inputs = self.processor(text=[row["caption"] for row in rows], return_tensors="pt")
        return numbers, rows, BatchFeature({**inputs, "pixel_values": torch.cat(pixel_values)})

    def _leave_out(self, reason: str) -> None:
        self.num_left_out += 1
        self.last_reason = reason
        if self.num_left_out <= _MOST_NAMED:
            logger.warning("left out row %d: %s", self.num_read, reason)

    def _read_row(self, values: dict[str, Any]) -> dict[str, Any]:
        cell, image = values["caption"], values["image"]
        captions = cell if isinstance(cell, list) else [cell]
        caption = next((text for text in captions if isinstance(text, str) and text.strip()), None)
        if caption is None:
            raise ValueError(f"caption holds {cell!r:.200}, no caption")
        if image is None:
            raise ValueError("image is empty")
        category = None if self.category_column is None else self._name_category(values[self.category_column])
        caption = cut_caption(caption, self.processor.tokenizer)
        return {"image": decode_image(image), "caption": caption, "label": Label(content_words(caption), category)}

    def _name_category(self, value: Any) -> str:
        names = self._category_names
        if value is None or (names is not None and not 0 <= value < len(names)):
            raise ValueError(f"{self.category_column} holds {value!r}, no category")
        return str(value) if names is None else names[value]
