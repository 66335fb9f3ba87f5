# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Batches of pairs: which rows meet in one, and how they become inputs of the model."""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Sampler
from transformers import BatchFeature

from modeling_fdt import FDTProcessor
from run_scripts.data.augmentation import Augmentation
from run_scripts.data.captions import cut_caption


class DistinctBatchSampler(Sampler[int]):
    """Orders rows so that every block of `block_size` consecutive ones holds distinct values.

    Captions that repeat within a batch are false negatives to a contrastive loss. With `block_size` the global batch,
    the order stays right on several processes, which take turns in reading batches from it. An epoch has as many
    blocks as can be filled; which rows are left out changes with the epoch.

    Args:
        values: one value for each row.
        block_size: number of rows in a global batch.
        seed: of the order, together with the epoch.

    Raises:
        ValueError: there are fewer distinct values than a block holds.
    """

    def __init__(self, values: Sequence, block_size: int, seed: int):
        self.values = np.unique(np.asarray(values), return_inverse=True)[1]  # (num_rows,) as integers
        self.block_size, self.seed, self.epoch = block_size, seed, 0
        counts = np.bincount(self.values)
        if len(counts) < block_size:
            raise ValueError(f"a global batch of {block_size} needs as many distinct values, got {len(counts)}")
        # A value can be once in each block, so n blocks can use min(count, n) of its rows.
        self.num_blocks = next(
            n for n in range(len(self.values) // block_size, 0, -1) if np.minimum(counts, n).sum() >= n * block_size
        )

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_blocks * self.block_size

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng((self.seed, self.epoch))
        rows = generator.permutation(len(self.values))
        ranks = generator.permutation(self.values.max() + 1)  # a random order of the values
        rows = rows[np.argsort(ranks[self.values[rows]], kind="stable")]  # equal values now stand side by side
        _, starts, counts = np.unique(ranks[self.values[rows]], return_index=True, return_counts=True)
        rows = rows[np.arange(len(rows)) - np.repeat(starts, counts) < self.num_blocks][: len(self)]
        # Dealt in turn to the blocks, neighbours never meet: no value has more rows than there are blocks.
        blocks = rows.reshape(self.block_size, self.num_blocks).T
        yield from generator.permuted(blocks, axis=1).ravel().tolist()


class EndlessSampler(Sampler[int]):
    """All numbers from 0 on, in order and without an end: an epoch goes on where the one before stopped.

    Args:
        length: of an epoch, about; it holds whole blocks.
        block_size: number of rows in a global batch.
    """

    def __init__(self, length: int, block_size: int):
        self.length, self.epoch = length - length % block_size, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        yield from range(self.epoch * self.length, (self.epoch + 1) * self.length)


class ContrastiveCollator:
    """Turns rows of [`open_source`] into model inputs: one caption for each image, images cut to one size and varied.

    What is drawn comes from the generators of `random` and torch, which [`FDTTrainer`] seeds for every batch.

    Args:
        processor: gives the images' size, mean and standard deviation, and tokenises.
        augmentation: the steps of [`Augmentation`]. Without it the images are processed as in evaluation.
        augment_on_device: leave all but the cut to the trainer: `pixel_values` are then the arguments of
            [`Augmentation.vary_batch`], images as bytes and a seed.

    Returns (when called):
        `pixel_values` of shape (batch_size, 3, height, width), and `input_ids` and `attention_mask` of shape
        (batch_size, longest caption).
    """

    def __init__(self, processor: FDTProcessor, augmentation: dict | None = None, augment_on_device: bool = False):
        self.processor = processor
        self.augmentation = None if augmentation is None else Augmentation(augmentation, processor.image_processor)
        self.augment_on_device = augment_on_device

    def __call__(self, rows: list[dict]) -> BatchFeature:
        captions = self.draw_captions(rows)
        images = [row["image"] for row in rows]
        if self.augmentation is None:
            return self.processor(images=images, text=captions, return_tensors="pt", padding=True, truncation=True)
        inputs = self.processor(text=captions, return_tensors="pt", padding=True, truncation=True)
        inputs["pixel_values"] = self.augment(images)
        return inputs

    def draw_captions(self, rows: list[dict]) -> list[str]:
        """One caption for each row, not longer than can reach the model."""
        captions = [row["caption"] for row in rows]
        captions = [random.choice(caption) if isinstance(caption, list) else caption for caption in captions]
        return [cut_caption(caption, self.processor.tokenizer) for caption in captions]

    def augment(self, images: list[Image.Image]) -> torch.Tensor | tuple[torch.Tensor, int]:
        """Images cut, varied and normalised, (batch_size, 3, height, width), or what is needed to vary them later."""
        seed = int(torch.randint(2**62, ()))
        pixels = self.augmentation.cut(images, seed)
        return (pixels, seed) if self.augment_on_device else self.augmentation.vary_images(pixels, seed)


class ReproducibleCollator:
    """Collates a batch with random numbers that depend on the seed and the batch alone.

    Batches are made ahead of training and in other processes. With the global generators' numbers, augmentation would
    depend on how many workers there are and on where a run was resumed.

    Args:
        collator: turns rows into model inputs, with random numbers of Python, numpy or torch.
        seed: together with the epoch and what the rows say (not their images) the seed of a batch.
    """

    def __init__(self, collator: Callable[[list], Any], seed: int):
        self.collator, self.seed = collator, seed
        # Workers that live longer than an epoch see it change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __call__(self, rows: list) -> Any:
        digest = hashlib.blake2b(_to_bytes((self.seed, self._epoch.item(), rows)), digest_size=4).digest()
        with _seeded(int.from_bytes(digest, "little")):
            return self.collator(rows)


def _to_bytes(value: Any) -> bytes:
    if isinstance(value, dict):
        return _to_bytes(list(value.items()))
    if isinstance(value, list | tuple):
        return b"(" + b",".join(map(_to_bytes, value)) + b")"
    if isinstance(value, torch.Tensor | np.ndarray):
        return np.asarray(value).tobytes()
    if isinstance(value, str | bytes | int | float | None):
        return repr(value).encode()
    return type(value).__name__.encode()


@contextmanager
def _seeded(seed: int):
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([]):
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)  # not the devices': dropout draws from those
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
