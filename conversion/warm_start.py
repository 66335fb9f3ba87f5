# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""The parts of a warm start: pretrained towers, a processor that fits them, and token queries to start codes from."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, load_dataset, load_from_disk
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedModel

from modeling_fdt import FDTModel, FDTProcessor
from modeling_fdt.processing_fdt import fit_tokenizer

from .command_line import reported_as
from .open_clip import is_open_clip, load_open_clip_towers, open_clip_image_processor
from .weights import load_checked_model


# SigLIP 2 at a fixed resolution is of type "siglip"; with images of any shape ("siglip2") its inputs differ.
TWO_TOWER_TYPES = ("clip", "metaclip_2", "siglip")


def load_towers(name: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """
    The image tower and the text tower of a checkpoint.

    Args:
        name: a folder or a name on the Hub.

    Raises:
        ValueError: it is no checkpoint of transformers, of another type, or lacks weights or holds damaged ones.
    """
    if is_open_clip(name):
        return load_open_clip_towers(name)
    model = load_checked_model(name, TWO_TOWER_TYPES, needed=("vision_model.", "text_model."))
    return model.vision_model, model.text_model


def load_processor(name: str, model: FDTModel) -> FDTProcessor:
    """
    The checkpoint's own image processor and tokenizer, as an FDTProcessor that the model can take inputs from.

    Args:
        name: a folder or a name on the Hub.
        model: built from the checkpoint's towers. Captions are cut to its context.

    Raises:
        ValueError: a processor is missing, or does not fit the tower that it is for.
    """
    if is_open_clip(name):
        image_processor = open_clip_image_processor(name)
    else:
        with reported_as(f"{name}: no image processor that transformers can load"):
            image_processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    with reported_as(f"{name}: no tokenizer that transformers can load"):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    fit_tokenizer(name, tokenizer, model.config.text_config)
    processor = FDTProcessor(image_processor=image_processor, tokenizer=tokenizer)
    with reported_as(f"{name}: its towers cannot take what its processors give"), torch.no_grad():
        inputs = processor(images=Image.new("RGB", (48, 64)), text=["photo of cat dog"], return_tensors="pt")
        model(**inputs, return_loss=False)
    return processor


def load_pairs(dataset: str, split: str, columns: tuple[str, str], num_pairs: int, seed: int) -> Dataset:
    """
    Random pairs of a data set.

    Args:
        dataset: a folder of `save_to_disk`, or what `load_dataset` takes.
        split: the split, where the data set has several.
        columns: those of images and captions.
        num_pairs: at most so many.
        seed: of the choice.

    Raises:
        ValueError: the data set cannot be read, or lacks the split or a column.
    """
    is_saved = any((Path(dataset) / name).is_file() for name in ("dataset_dict.json", "state.json"))
    with reported_as(f"{dataset}: no such data set"):
        loaded = load_from_disk(dataset) if is_saved else load_dataset(dataset)
    if not isinstance(loaded, Dataset):
        if split not in loaded:
            raise ValueError(f"`split` must be one of {sorted(loaded)}, got {split!r}")
        loaded = loaded[split]
    for column in columns:
        if column not in loaded.column_names:
            raise ValueError(f"{dataset} has no column {column!r}; its columns are {loaded.column_names}")
    chosen = np.random.default_rng(seed).permutation(len(loaded))[:num_pairs]
    return loaded.select(chosen, keep_in_memory=True)  # else a cache file appears in the data set's folder


@torch.no_grad()
def token_queries(
    model: FDTModel, processor: FDTProcessor, pairs: Dataset, image_column: str, caption_column: str, batch_size: int
) -> Iterator[torch.Tensor]:
    """
    Projected features of patches and words, batch by batch.

    Yields:
        (tokens, codebook_dim); padding left out.
    """
    for batch in pairs.iter(batch_size):
        inputs = processor(images=batch[image_column], text=batch[caption_column], return_tensors="pt")
        outputs = model(**inputs, return_loss=False)
        patches, words = model.get_token_queries(outputs, inputs["pixel_values"])
        yield patches.flatten(0, 1)
        yield words[inputs["attention_mask"].bool()]
