# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Everything that the gallery, the table and the figures tell of each code."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from run_scripts.visualization.code_statistics import ModalityStatistics, image_share
from run_scripts.visualization.coherence import Coherence, CoherenceTest, Label, content_words, distinctive_words


NUM_NAME_WORDS = 3
NUM_SIMILAR_CODES = 6


@dataclass
class CodeSummary:
    """What is told of one code.

    Attributes:
        code: its index.
        words: the most distinctive words of its strongest items, none where they have no word in common.
        image_rate, text_rate: share of images and of captions in which it is active.
        image_weight, text_weight: its mean weight over all images and over all captions.
        image_share: see `code_statistics.image_share`; None for a dead code.
        image_coherence, text_coherence: of its strongest images and captions; None for fewer than two.
        similar: the codes nearest to it in the codebook, with the cosine; codes that fire only.
        top_images, top_captions: ids and weights of its strongest items.
    """

    code: int
    words: list[str]
    image_rate: float
    text_rate: float
    image_weight: float
    text_weight: float
    image_share: float | None
    image_coherence: Coherence | None
    text_coherence: Coherence | None
    similar: list[tuple[int, float]]
    top_images: list[tuple[int, float]]
    top_captions: list[tuple[int, float]]

    @property
    def is_dead(self) -> bool:
        """Whether it fired nowhere."""
        return self.image_rate == 0 and self.text_rate == 0

    @property
    def is_significant(self) -> bool:
        """Whether its strongest images, or without those its captions, are more alike than random at p <= 0.05."""
        test = self.image_coherence or self.text_coherence
        return test is not None and test.p_value <= 0.05

    @property
    def name(self) -> str:
        return " · ".join(self.words)


def summarize_codes(
    image: ModalityStatistics,
    text: ModalityStatistics,
    sample: list[Label],
    codebook: torch.Tensor,
    num_draws: int,
    seed: int,
) -> list[CodeSummary]:
    """One summary for each code, in the codebook's order.

    Args:
        image, text: statistics of one pass over the data.
        sample: labels of random rows, what a code's items are compared with.
        codebook: (codebook_size, codebook_dim).
        num_draws, seed: of the permutation test.
    """
    background = Counter(word for label in sample for word in label.words)
    coherence_test = CoherenceTest(sample, num_draws, seed)
    shares = image_share(image, text)
    similar = find_similar(codebook, (image.counts + text.counts) > 0, NUM_SIMILAR_CODES)
    image_rates, text_rates = image.rates.tolist(), text.rates.tolist()
    image_weights, text_weights = image.mean_weights.tolist(), text.mean_weights.tolist()
    summaries = []
    for code in tqdm(range(len(codebook)), desc="summarizing codes", unit="code"):
        top_images, top_captions = image.top_of(code), text.top_of(code)
        records = [image.items[item] for item, _ in top_images]
        captions = [text.items[item] for item, _ in top_captions]
        # Every distinct caption counts once, however many images have it.
        distinct = dict.fromkeys([record.caption for record in records] + [caption.text for caption in captions])
        summaries.append(
            CodeSummary(
                code=code,
                words=distinctive_words([content_words(caption) for caption in distinct], background, NUM_NAME_WORDS),
                image_rate=image_rates[code],
                text_rate=text_rates[code],
                image_weight=image_weights[code],
                text_weight=text_weights[code],
                image_share=shares[code].item() if top_images or top_captions else None,
                image_coherence=coherence_test([record.label for record in records]),
                text_coherence=coherence_test([caption.label for caption in captions]),
                similar=similar[code],
                top_images=top_images,
                top_captions=top_captions,
            )
        )
    return summaries


def find_similar(codebook: torch.Tensor, is_alive: torch.Tensor, number: int) -> list[list[tuple[int, float]]]:
    """For each code the nearest others by cosine, among those alive; the similarities are held in parts."""
    directions = F.normalize(codebook, dim=-1)
    alive = is_alive.nonzero().flatten()
    similar = []
    for rows in torch.arange(len(codebook)).split(1024):
        cosines = directions[rows] @ directions[alive].T
        cosines.masked_fill_(alive == rows[:, None], -torch.inf)
        values, places = cosines.topk(min(number, len(alive)), dim=-1)
        for codes, row in zip(alive[places].tolist(), values.tolist(), strict=True):
            similar.append([(code, cosine) for code, cosine in zip(codes, row, strict=True) if cosine > -torch.inf])
    return similar


def write_parquet(codes: list[CodeSummary], image: ModalityStatistics, text: ModalityStatistics, path: Path) -> None:
    """One row for each code. Images are told by their row in the data set, captions by their text."""
    rows = []
    for code in codes:
        row = {
            "code": code.code,
            "name": code.name,
            "num_images": image.counts[code.code].item(),
            "num_captions": text.counts[code.code].item(),
            **{name: getattr(code, name) for name in ("image_rate", "text_rate", "image_weight", "text_weight")},
            "image_share": code.image_share,
        }
        for modality in ("image", "text"):
            coherence = getattr(code, f"{modality}_coherence")
            for name in ("share", "baseline", "p_value"):
                row[f"{modality}_coherence_{name}"] = None if coherence is None else getattr(coherence, name)
        row["similar_codes"] = [other for other, _ in code.similar]
        row["top_image_rows"] = [item for item, _ in code.top_images]
        row["top_captions"] = [text.items[item].text for item, _ in code.top_captions]
        rows.append(row)
    floats = {name: pyarrow.float64() for name, value in rows[0].items() if isinstance(value, float | None)}
    lists = {name: pyarrow.list_(pyarrow.int64()) for name in ("similar_codes", "top_image_rows")}
    lists["top_captions"] = pyarrow.list_(pyarrow.string())
    types = {"code": pyarrow.int64(), "name": pyarrow.string(), **floats, **lists}
    types |= {"num_images": pyarrow.int64(), "num_captions": pyarrow.int64()}
    schema = pyarrow.schema([(name, types[name]) for name in rows[0]])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), path)
