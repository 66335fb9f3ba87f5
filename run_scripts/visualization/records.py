# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""What the gallery keeps of an image or a caption: thumbnails, heat maps and word marks small enough for a page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from modeling_fdt import FDTExplanation, FDTModel, FDTOutput, FDTProcessor
from modeling_fdt.explanation_fdt import explain_outputs, get_patch_grid, score_codes
from run_scripts.data.decoding import to_rgb
from run_scripts.visualization.coherence import Label


# One sign for each of 64 levels of a heat map.
LEVELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

# How many codes the page of an image shows, and how many that it shares with its caption.
NUM_IMAGE_CODES, NUM_SHARED_CODES = 5, 3


@dataclass
class HeatMap:
    """Scores of a code at the patches of an image.

    Attributes:
        grid: number of rows and columns.
        levels: one sign of `LEVELS` for each patch, row by row, from the lowest score to the highest of this map.
        lowest, highest: those scores.
    """

    grid: tuple[int, int]
    levels: str
    lowest: float
    highest: float


@dataclass
class MarkedWords:
    """Scores of a code at the words of a caption.

    Attributes:
        levels: a digit for each word: 9 for the highest score, 0 for a score of 0 and below.
        winner: the position of the word that won; None where no word did, and padding set the score.
    """

    levels: str
    winner: int | None


@dataclass
class ImageRecord:
    """An image with its page in the gallery.

    Attributes:
        caption, label: of its row.
        size: width and height of the thumbnail.
        box: left, top, width and height of what the model sees, in per cent of the image.
        codes: its strongest codes: index, weight, heat map.
        logit: of the image with its caption.
        same_code_logit: how much of that comes from the same codes in both.
        shared: the codes that add most of it: index and what it adds.
    """

    caption: str
    label: Label
    size: tuple[int, int]
    box: tuple[float, float, float, float]
    codes: list[tuple[int, float, HeatMap]]
    logit: float
    same_code_logit: float
    shared: list[tuple[int, float]]


@dataclass
class Caption:
    """A caption, as words that can be marked.

    Attributes:
        text: as in the data set.
        label, row: of the row where it was first seen.
        words: what the tokenizer reads, special tokens included.
        spans: start and end of each word in the cleaned text; None for special tokens.
    """

    text: str
    label: Label
    row: int
    words: list[str]
    spans: list[tuple[int, int] | None]


def encode_heat_maps(scores: torch.Tensor) -> list[HeatMap]:
    """Heat maps of (num_codes, grid_height, grid_width) scores. A flat map is all at the lowest level."""
    flat = scores.flatten(1).float()
    lowest, highest = flat.amin(dim=1), flat.amax(dim=1)
    extent = (highest - lowest).clamp(min=1e-12)
    levels = ((flat - lowest[:, None]) / extent[:, None] * (len(LEVELS) - 1)).round().to(torch.uint8).cpu().numpy()
    signs = np.frombuffer(LEVELS.encode(), dtype=np.uint8)[levels]
    grid = tuple(scores.shape[1:])
    rows = zip(signs, lowest.tolist(), highest.tolist(), strict=True)
    return [HeatMap(grid, row.tobytes().decode(), low, high) for row, low, high in rows]


def decode_heat_map(heat_map: HeatMap) -> np.ndarray:
    """Levels from 0 to 1, as an array of the map's grid."""
    levels = [LEVELS.index(sign) for sign in heat_map.levels]
    return np.array(levels).reshape(heat_map.grid) / (len(LEVELS) - 1)


def mark_words(scores: torch.Tensor, winners: list[int | None]) -> list[MarkedWords]:
    """Marks of (num_codes, num_words) scores."""
    scores = scores.clamp(min=0)
    levels = (scores / scores.amax(dim=1, keepdim=True).clamp(min=1e-12) * 9).round().int().tolist()
    return [MarkedWords("".join(map(str, row)), winner) for row, winner in zip(levels, winners, strict=True)]


class BatchRecords:
    """Makes the records of one batch, for those rows that are asked for.

    Args:
        model, processor: which explain.
        rows: `image`, `caption` and `label` of each.
        numbers: those of the rows in the data set.
        inputs, outputs: of the model, for these rows.
        thumbnail_size: longest side in pixels.
        thumbnails: folder where thumbnails are written, named by row.
    """

    def __init__(
        self,
        model: FDTModel,
        processor: FDTProcessor,
        rows: list[dict],
        numbers: list[int],
        inputs: dict[str, torch.Tensor],
        outputs: FDTOutput,
        thumbnail_size: int,
        thumbnails: Path,
    ):
        self.model, self.processor, self.rows, self.numbers = model, processor, rows, numbers
        self.inputs, self.outputs = inputs, outputs
        self.thumbnail_size, self.thumbnails = thumbnail_size, thumbnails
        hidden = outputs.vision_model_output.last_hidden_state
        self.grid = get_patch_grid(model, hidden, inputs["pixel_values"])
        self.queries, _ = model.get_token_queries(outputs, inputs["pixel_values"])

    def image(self, row: int) -> ImageRecord:
        """The record of the row's image; writes its thumbnail."""
        image = self.rows[row]["image"]
        thumbnail = save_thumbnail(image, self.thumbnails / f"{self.numbers[row]}.webp", self.thumbnail_size)
        explanation = explain_row(self.model, self.inputs, self.outputs, row, top_k=NUM_IMAGE_CODES)
        is_active = explanation.image_weights[0] > 0
        codes, weights = explanation.image_codes[0, is_active], explanation.image_weights[0, is_active]
        heat_maps = encode_heat_maps(explanation.patch_scores[0, is_active])
        shared = zip(
            explanation.shared_codes[0, 0].tolist(), explanation.shared_contributions[0, 0].tolist(), strict=True
        )
        return ImageRecord(
            caption=self.rows[row]["caption"],
            label=self.rows[row]["label"],
            size=thumbnail,
            box=box_in_percent(self.processor, image),
            codes=list(zip(codes.tolist(), weights.tolist(), heat_maps, strict=True)),
            logit=explanation.logits_per_image.item(),
            same_code_logit=explanation.same_code_logits.item(),
            shared=[(code, addition) for code, addition in shared if addition > 0][:NUM_SHARED_CODES],
        )

    def heat_maps(self, row: int, codes: list[int]) -> list[HeatMap]:
        """Heat maps of codes on the row's image."""
        index = torch.tensor([codes], device=self.queries.device)
        scores = score_codes(self.queries[row : row + 1], self.model.codebook, index)[0]
        return encode_heat_maps(scores.unflatten(-1, self.grid))

    def caption(self, row: int) -> Caption:
        """The record of the row's caption."""
        text = self.rows[row]["caption"]
        words, spans, _ = self.processor.split_words(text)
        return Caption(text, self.rows[row]["label"], self.numbers[row], words, spans)

    def marked_words(self, row: int, codes: list[int]) -> list[MarkedWords]:
        """Marks of codes on the row's caption; the codes must be active in it."""
        explanation = explain_row(self.model, self.inputs, self.outputs, row, codes=codes, modalities=["text"])
        (result,) = self.processor.post_process_text_explanation(explanation, self.rows[row]["caption"])
        return mark_words(result["scores"], result["winners"])


def explain_row(
    model: FDTModel,
    inputs: dict[str, torch.Tensor],
    outputs: FDTOutput,
    row: int,
    *,
    top_k: int | None = None,
    codes: list[int] | None = None,
    modalities: Sequence[str] = ("image", "text"),
) -> FDTExplanation:
    """`FDTModel.explain` of one row of a batch, without another forward pass."""
    part, fields = slice(row, row + 1), {}
    for modality in modalities:
        tower = "vision_model_output" if modality == "image" else "text_model_output"
        for name in (f"{modality}_embeds", f"{modality}_code_weights"):
            fields[name] = outputs[name][part]
        fields[tower] = type(outputs[tower])(last_hidden_state=outputs[tower].last_hidden_state[part])
    if len(modalities) == 2:
        fields["logits_per_image"] = outputs.logits_per_image[part, part]
    arguments = (inputs["pixel_values"][part], inputs["attention_mask"][part], top_k, codes)
    return explain_outputs(model, FDTOutput(**fields), *arguments)


def box_in_percent(processor: FDTProcessor, image: Image.Image) -> tuple[float, float, float, float]:
    """Left, top, width and height of what the model sees, in per cent of the image."""
    width, height = image.size
    left, top, right, bottom = processor.get_crop_box((height, width))
    return 100 * left / width, 100 * top / height, 100 * (right - left) / width, 100 * (bottom - top) / height


def save_thumbnail(image: Image.Image, path: Path, longest_side: int) -> tuple[int, int]:
    """Write a small copy as WebP, of what the model sees as RGB; returns its width and height."""
    thumbnail = to_rgb(image)
    thumbnail.thumbnail((longest_side, longest_side))
    thumbnail.save(path, quality=65, method=3)
    return thumbnail.size
