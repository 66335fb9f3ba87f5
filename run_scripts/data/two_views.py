# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Batches in which every pair is seen twice: two views of the image, two of the caption."""

from collections.abc import Sequence

from transformers import BatchFeature

from run_scripts.data.batches import ContrastiveCollator
from run_scripts.data.text_views import TEXT_EDITS, edit_caption, mask_tokens


class TwoViewCollator(ContrastiveCollator):
    """[`ContrastiveCollator`] with two views of every pair, as the original's DECLIP_FDT takes them.

    Args:
        edits: names in [`TEXT_EDITS`] to draw from for the second view of a caption.

    Returns (when called):
        `pixel_values` of shape (2 * batch_size, 3, height, width), first views first; `input_ids` and `attention_mask`
        of shape (2 * batch_size, longest caption), masked captions first, edited ones after them; `token_labels`
        (batch_size, longest caption), the masked words.

    Raises:
        ValueError: there is no augmentation, which makes the views of an image differ, or no such edit.
    """

    def __init__(self, *args, edits: Sequence[str], **kwargs):
        super().__init__(*args, **kwargs)
        if self.augmentation is None:
            raise ValueError("objective='declip' needs augmentation: without it two views of an image are the same")
        unknown = sorted({*edits} - TEXT_EDITS.keys())
        if unknown or not edits:
            raise ValueError(f"text_edits must be some of {[*TEXT_EDITS]}, got {[*edits]}")
        self.edits = list(edits)

    def __call__(self, rows: list[dict]) -> BatchFeature:
        captions = self.draw_captions(rows)
        edited = [edit_caption(caption, self.edits) for caption in captions]
        inputs = self.processor(text=captions + edited, return_tensors="pt", padding=True, truncation=True)
        first = {name: inputs[name][: len(rows)] for name in ("input_ids", "attention_mask")}
        masked, labels = mask_tokens(**first, tokenizer=self.processor.tokenizer)
        inputs["input_ids"][: len(rows)] = masked
        inputs["token_labels"] = labels
        inputs["pixel_values"] = self.augment([row["image"] for row in rows] * 2)
        return inputs
