# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Completeness: does the model prefer the true caption to one that names what the image does not have?"""

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset, Image, concatenate_datasets
from transformers import PreTrainedModel, ProcessorMixin

from run_scripts.data.source import check_columns, open_source
from run_scripts.evaluation.arguments import CompletenessArguments
from run_scripts.evaluation.inputs import describe_data, embed_all_images, embed_texts, read_texts
from run_scripts.evaluation.results import Chart, Evaluation, Metric


@dataclass
class Swap:
    """A true and a false caption of the image in a row, and the kind of word that was swapped."""

    row: int
    caption: str
    negative_caption: str
    kind: str


def find_swaps(dataset: Dataset, word_columns: list[str], seed: int) -> list[Swap]:
    """For every annotated word that its caption names, the caption with another word of the same kind instead.

    The other word is drawn from all words of the column; the image must not have it, and its caption must not name it.

    Raises:
        ValueError: a row has no caption or no list of words, no caption names a word of its row, or no other word can
            take its place.
    """
    generator = random.Random(seed)
    captions, swaps = read_texts(dataset, "caption", "caption_column"), []
    for kind in word_columns:
        annotations = read_words(dataset, kind)
        vocabulary = sorted({word for words in annotations for word in words})
        for row, words in enumerate(annotations):
            caption, present = captions[row], {word.lower() for word in words}
            absent = [word for word in vocabulary if word.lower() not in present and not _names(caption, word)]
            for word in dict.fromkeys(words):
                if absent and _names(caption, word):
                    swaps.append(Swap(row, caption, swap_word(caption, word, generator.choice(absent)), kind))
    if not swaps:
        raise ValueError(f"no caption names a word of its row in word_columns={word_columns} that could be swapped")
    return swaps


def read_words(dataset: Dataset, column: str) -> list[list[str]]:
    """The words that a column lists of every row; blank ones and None in the place of a list are none.

    Raises:
        ValueError: a cell holds something else.
    """
    annotations = []
    for row, cell in enumerate(dataset[column]):
        words = [] if cell is None else cell
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"word_columns={column!r} of row {row} holds {cell!r}, not a list of words")
        annotations.append([word for word in words if word.strip()])
    return annotations


def swap_word(caption: str, word: str, other: str) -> str:
    """The caption with every whole-word occurrence of `word`, in any case, replaced by `other`."""
    return re.sub(_whole(word), lambda match: other, caption, flags=re.IGNORECASE)


def _names(caption: str, word: str) -> bool:
    return word.lower() in caption.lower() and re.search(_whole(word), caption, flags=re.IGNORECASE) is not None


def _whole(word: str) -> str:
    return rf"(?<!\w){re.escape(word)}(?!\w)"


def read_sugarcrepe(folder: str, image_folder: str) -> Dataset:
    """The files of SugarCrepe as one data set with the columns image, caption, negative_caption and kind.

    Args:
        folder: holds replace_obj.json, swap_att.json, ...; each maps numbers to objects with `filename`, `caption`
            and `negative_caption`.
        image_folder: the images of COCO val2017.

    Raises:
        ValueError: there is no such file, or an image that it names is missing.
    """
    rows = []
    for path in sorted(Path(folder).glob("*.json")):
        for entry in json.loads(path.read_text(encoding="utf-8")).values():
            image = Path(image_folder, entry["filename"])
            if not image.is_file():
                raise ValueError(f"image_folder={image_folder!r} lacks {entry['filename']}, which {path.name} names")
            captions = {name: entry[name] for name in ("caption", "negative_caption")}
            rows.append({"image": str(image), **captions, "kind": path.stem})
    if not rows:
        raise ValueError(f"dataset={folder!r} holds no JSON file of SugarCrepe")
    return Dataset.from_list(rows).cast_column("image", Image())


def read_swaps(dataset: Dataset, negative_caption_column: str, kind_column: str | None) -> list[Swap]:
    """The captions and false captions that the data bring.

    Raises:
        ValueError: a row lacks one.
    """
    captions = read_texts(dataset, "caption", "caption_column")
    negatives = read_texts(dataset, negative_caption_column, "negative_caption_column")
    kinds = ["all"] * len(dataset) if kind_column is None else read_texts(dataset, kind_column, "kind_column")
    return [Swap(row, *values) for row, values in enumerate(zip(captions, negatives, kinds, strict=True))]


def evaluate_completeness(
    model: PreTrainedModel, processor: ProcessorMixin, arguments: CompletenessArguments
) -> Evaluation:
    """Compare every image with a true and a false caption; a tie counts against the model."""
    columns = {name: getattr(arguments, name) for name in ("negative_caption_column", "kind_column")}
    columns.update({f"word_columns ({name})": name for name in arguments.word_columns})
    if arguments.image_folder is not None:
        dataset = read_sugarcrepe(arguments.dataset, arguments.image_folder)
        check_columns(dataset, **columns)
    else:
        # Joined by + as in the slicing language of `datasets`: each kind of swap may be a split of its own.
        splits = arguments.split.split("+")
        dataset = concatenate_datasets([open_source(arguments, split, **columns) for split in splits])
    if arguments.kind_column is None and not arguments.word_columns and "kind" in dataset.column_names:
        columns["kind_column"] = "kind"
    if arguments.word_columns:
        swaps = find_swaps(dataset, arguments.word_columns, arguments.seed)
    else:
        swaps = read_swaps(dataset, columns["negative_caption_column"], columns["kind_column"])

    images = embed_all_images(model, processor, dataset, arguments.batch_size)
    images = images[[swap.row for swap in swaps]].double()
    texts = [swap.caption for swap in swaps] + [swap.negative_caption for swap in swaps]
    captions, negatives = embed_texts(model, processor, texts, arguments.batch_size).double().chunk(2)
    is_right = (images * captions).sum(dim=1) > (images * negatives).sum(dim=1)
    metrics = accuracy_by_kind(is_right, [swap.kind for swap in swaps])
    bars = [(name.removeprefix("accuracy_"), metric.value) for name, metric in metrics.items() if name != "accuracy"]
    return Evaluation(
        metrics=metrics,
        headline=arguments.metric,
        data=[describe_data(arguments.dataset, arguments.split, dataset, ["image", "caption", *columns.values()])],
        counts={"images": len(dataset), "swaps": len(swaps)},
        charts=[Chart("Accuracy by kind of swap", "bar", {"accuracy": bars})] if len(bars) > 1 else [],
    )


def accuracy_by_kind(is_right: torch.Tensor, kinds: list[str]) -> dict[str, Metric]:
    """Share of swaps in which the true caption won: of all, and of every kind."""
    metrics = {"accuracy": Metric(is_right.double().mean().item(), 0.5)}
    for kind in dict.fromkeys(kinds):
        of_kind = torch.tensor([other == kind for other in kinds])
        metrics[f"accuracy_{kind}"] = Metric(is_right[of_kind].double().mean().item(), 0.5)
    return metrics
