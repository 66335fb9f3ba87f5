# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""
Features of frozen towers, computed once and kept on disk: training reads them and runs no tower.

A cache is a folder. `features.json` tells by hashes which data set, towers, image processor and tokenizer its features
are of. Every shard, a safetensors file that is mapped into memory, holds those of `ROWS_PER_SHARD` rows, in float16.
A shard has its name only when it is complete and on disk, so whatever kills a writer costs the shards it was at.
"""

import hashlib
import json
import logging
import os
import random
import uuid
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from transformers import BatchFeature, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from modeling_fdt import FDTModel, FDTProcessor
from modeling_fdt.towers_fdt import is_unused_parameter
from run_scripts.data.captions import cut_caption
from run_scripts.data.decoding import ImageError, read_image_file
from run_scripts.data.pairs import BrokenPair, DataCounts, PairDataset, make_pair
from run_scripts.data.source import split_rows
from run_scripts.evaluation.embedding import hash_tensors
from run_scripts.training.reproducible import describe_config


logger = logging.getLogger(__name__)

DESCRIPTION_NAME = "features.json"
LOCK_NAME = "writing.lock"
PARTIAL_SUFFIX = ".partial"
ROWS_PER_SHARD = 1024
# Of the shards' content: a change to it makes older caches others'.
FORMAT = 1
_ROWS_HASHED_AT_ONCE = 64


def cache_features(
    folder: str | Path, model: FDTModel, processor: FDTProcessor, pairs: PairDataset, arguments: TrainingArguments
) -> "FeatureDataset":
    """
    The features of all pairs, computed as far as the cache lacks them. To be called on all processes of a run, which
    share the work; other runs that ask for the same cache wait until it is complete.

    Args:
        folder: the cache, which all processes see; made if there is none.
        model: whose towers' features are wanted. It is moved to the device of training if there is work for it.
        processor: that of the model.
        pairs: rows, with one caption or several.
        arguments: tell device, processes, workers, and `per_device_eval_batch_size`, of which the towers see batches.

    Raises:
        ValueError: the cache is of another data set, tower or processor, the folder holds something else, or features
            cannot be kept.
    """
    folder, is_first = Path(folder), arguments.process_index == 0
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_NAME)
    with lock if is_first else nullcontext():
        # One process looks, and tells the others what there is to do or why nothing can be done.
        found: list = [None, None, None]
        if is_first:
            try:
                store = FeatureStore(
                    folder, _open_cache(folder, describe_features(model, processor, pairs), len(pairs))
                )
                missing = [shard for shard in range(store.num_shards) if not store.path(shard).exists()]
                found = [store.description, missing, None]
            except ValueError as refusal:
                found[2] = str(refusal)
        description, missing, error = broadcast_object_list(found)
        if error is not None:
            raise ValueError(error)
        store = FeatureStore(folder, description)
        if missing:
            logger.info("%s lacks %d of %d shards of features.", folder, len(missing), store.num_shards)
            own = missing[arguments.process_index :: arguments.world_size]
            write_shards(store, own, model.to(arguments.device), processor, pairs, arguments)
            PartialState().wait_for_everyone()
    store.check_shards()
    return FeatureDataset(pairs, store)


# Whose features


def describe_features(model: FDTModel, processor: FDTProcessor, pairs: PairDataset) -> dict[str, Any]:
    """Hashes of all that decides the features, by name. It reads the whole data set, decoding nothing."""
    return {
        "format": FORMAT,
        "dataset": _hash_pairs(pairs),
        "vision_tower": _hash_tower(model.vision_tower),
        "text_tower": _hash_tower(model.text_tower),
        "image_processor": _hash_image_processor(processor.image_processor),
        "tokenizer": _hash_tokenizer(processor.tokenizer),
    }


def _hash_json(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def _hash_pairs(pairs: PairDataset) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for rows in pairs.dataset.iter(_ROWS_HASHED_AT_ONCE):
        for row in split_rows(rows):
            data = _read_bytes(row["image"])
            digest.update(json.dumps([None if data is None else len(data), row["caption"]]).encode())
            digest.update(data or b"")
    return digest.hexdigest()


def _read_bytes(image: dict[str, Any] | None) -> bytes | None:
    """The bytes of an image as `datasets` keeps it; None where there are none."""
    if image is None or image.get("bytes") is not None:
        return None if image is None else image["bytes"]
    try:
        return None if image.get("path") is None else read_image_file(image["path"])
    except ImageError:
        return None


def _hash_tower(tower: PreTrainedModel) -> str:
    digest = hashlib.blake2b(_hash_json(describe_config(tower.config)).encode(), digest_size=16)
    # What no feature depends on may have been lacking in the checkpoint, and is then new in every run.
    weights = tower.state_dict().items()
    hash_tensors(digest, {name: value for name, value in weights if not is_unused_parameter(tower.config, name)})
    return digest.hexdigest()


def _hash_image_processor(image_processor: Any) -> str:
    options = image_processor.to_dict()
    about_files = ("auto_map", "processor_class")
    return _hash_json({name: options[name] for name in options if name[0] != "_" and name not in about_files})


def _hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    if not tokenizer.is_fast:
        raise ValueError(f"cache_features needs a tokenizer that tells all it does, not a {type(tokenizer).__name__}")
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    # What the last call set, by its arguments.
    rules = {name: rule for name, rule in rules.items() if name not in ("truncation", "padding")}
    return _hash_json([type(tokenizer).__name__, tokenizer.model_max_length, rules])


def _open_cache(folder: Path, wanted: dict[str, Any], num_rows: int) -> dict[str, Any]:
    """The description of a cache, which is begun where there is none; what killed writers left is removed."""
    path = folder / DESCRIPTION_NAME
    for partial_file in folder.glob(f"*{PARTIAL_SUFFIX}"):
        partial_file.unlink()
    if not path.exists():
        others = sorted(other.name for other in folder.iterdir() if other.name != LOCK_NAME)
        if others:
            raise ValueError(f"cache_features={str(folder)!r} is no cache of features: it holds {others[:3]}")
        description = {**wanted, "num_rows": num_rows, "rows_per_shard": ROWS_PER_SHARD}
        _write_whole(path, json.dumps(description, indent=2).encode() + b"\n")
    description = json.loads(path.read_text(encoding="utf-8"))
    different = [name for name, value in wanted.items() if description.get(name) != value]
    if different:
        raise ValueError(
            f"cache_features={str(folder)!r} holds features of another {', another '.join(different)}: give another "
            "folder"
        )
    return description


# Reading


@dataclass
class PairFeatures:
    """What the towers say of a pair. Not a tuple: a batch's random numbers shall not depend on numbers this long.

    Attributes:
        patches: (num_patches, hidden_size) in float16.
        captions: for each caption (num_tokens, hidden_size) in float16.
    """

    patches: torch.Tensor
    captions: list[torch.Tensor]


class FeatureStore:
    """A cache that is read: rows of features, mapped into memory.

    Args:
        folder: the cache.
        description: the content of its `features.json`.
    """

    def __init__(self, folder: Path, description: dict[str, Any]):
        self.folder, self.description = folder, description
        self.num_rows, self.rows_per_shard = description["num_rows"], description["rows_per_shard"]
        self.num_shards = -(-self.num_rows // self.rows_per_shard)
        self._shards: dict[int, dict[str, torch.Tensor]] = {}

    def __getstate__(self) -> dict[str, Any]:
        # A worker that is not forked maps the files anew: to send it their content would copy it.
        return {**self.__dict__, "_shards": {}}

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int | list[int]) -> dict[str, Any]:
        """A row by its number, or several as columns."""
        if isinstance(index, list):
            return {"features": [self.read(row) for row in index]}
        return {"features": self.read(index)}

    def rows(self, shard: int) -> range:
        """The numbers of a shard's rows."""
        return range(shard * self.rows_per_shard, min((shard + 1) * self.rows_per_shard, self.num_rows))

    def path(self, shard: int) -> Path:
        return self.folder / f"features-{shard:05d}-of-{self.num_shards:05d}.safetensors"

    def read(self, row: int) -> PairFeatures | str:
        """The features of a row, or the reason why there are none: one of `DataCounts.REASONS`."""
        shard, place = divmod(row, self.rows_per_shard)
        if shard not in self._shards:
            self._shards[shard] = self._open(shard)
        tensors = self._shards[shard]
        reason = tensors["broken"][place].item()
        if reason > 0:
            return DataCounts.REASONS[reason - 1]
        first, last = tensors["row_ends"][[place, place + 1]].tolist()
        ends = tensors["caption_ends"][first : last + 1].tolist()
        captions = [tensors["token_features"][start:end] for start, end in zip(ends[:-1], ends[1:], strict=True)]
        return PairFeatures(tensors["patch_features"][(tensors["broken"][:place] == 0).sum()], captions)

    def _open(self, shard: int) -> dict[str, torch.Tensor]:
        path = self.path(shard)
        try:
            with safe_open(path, "pt") as file:
                if file.metadata() == self.metadata:
                    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} cannot be read: {error}; where it is damaged, delete it") from error
        raise ValueError(f"{path} belongs to another cache of features: delete it")

    @property
    def metadata(self) -> dict[str, str]:
        """What every shard says of itself."""
        return {"cache": _hash_json(self.description)}

    def check_shards(self) -> None:
        """Raise a ValueError where a shard is missing, damaged or of another cache."""
        for shard in range(self.num_shards):
            self._open(shard)


class FeatureDataset(PairDataset):
    """The features of a data set's pairs; an unusable pair is replaced as in the data set itself.

    Args:
        pairs: the data set.
        store: its features.
    """

    def __init__(self, pairs: PairDataset, store: FeatureStore):
        self.__dict__.update(pairs.__dict__)  # which rows may meet, and what is counted
        self.dataset = store

    def _read(self, row: dict[str, PairFeatures | str], index: int) -> dict[str, Any]:
        with self.counts.counting(f"row {index}"):
            if isinstance(row["features"], str):
                raise BrokenPair(row["features"])
            return {"index": index, "features": row["features"]}


class FeatureCollator:
    """Makes batches for the model of features; of several captions one is drawn.

    Returns (when called):
        `patch_features` of shape (batch_size, num_patches, hidden_size), `token_features` of shape (batch_size,
        longest caption, hidden_size), both in float16, and `attention_mask`.
    """

    augmentation = None

    def __call__(self, rows: list[dict[str, Any]]) -> BatchFeature:
        features = [row["features"] for row in rows]
        captions = [random.choice(pair.captions) for pair in features]
        is_token = [torch.ones(len(caption), dtype=torch.int64) for caption in captions]
        return BatchFeature(
            {
                "patch_features": torch.stack([pair.patches for pair in features]),
                "token_features": pad_sequence(captions, batch_first=True),
                "attention_mask": pad_sequence(is_token, batch_first=True),
            }
        )


# Writing


class _Rows(TorchDataset):
    """Rows as pairs, or as the reasons why they are none."""

    def __init__(self, pairs: PairDataset):
        self.pairs = pairs

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any] | str]:
        return [self._make_pair(row) for row in split_rows(self.pairs.dataset[indices])]

    def _make_pair(self, row: dict[str, Any]) -> dict[str, Any] | str:
        try:
            return make_pair(row)
        except BrokenPair as broken:
            return broken.reason


def _process(rows: list[dict[str, Any] | str], processor: FDTProcessor) -> dict[str, Any]:
    """What the model takes of the usable rows, and for every row its number of captions and what is broken."""
    pairs = [row for row in rows if not isinstance(row, str)]
    batch = {
        "broken": [DataCounts.REASONS.index(row) + 1 if isinstance(row, str) else 0 for row in rows],
        "num_captions": [0 if isinstance(row, str) else len(row["caption"]) for row in rows],
    }
    if pairs:
        captions = [cut_caption(caption, processor.tokenizer) for pair in pairs for caption in pair["caption"]]
        images = [pair["image"] for pair in pairs]
        batch["pixel_values"] = processor(images=images, return_tensors="pt")["pixel_values"]
        batch["captions"] = processor(text=captions, return_tensors="pt", padding=True, truncation=True)
    return batch


def write_shards(
    store: FeatureStore,
    shards: list[int],
    model: FDTModel,
    processor: FDTProcessor,
    pairs: PairDataset,
    arguments: TrainingArguments,
) -> None:
    """Compute and write some shards of a cache; arguments as of [`cache_features`].

    Raises:
        ValueError: images come in several sizes, or features are too large for float16.
    """
    batch_size = arguments.per_device_eval_batch_size
    batches = {
        shard: [list(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]
        for shard, rows in ((shard, store.rows(shard)) for shard in shards)
    }
    loader = DataLoader(
        _Rows(pairs),
        batch_sampler=[batch for of_shard in batches.values() for batch in of_shard],
        collate_fn=partial(_process, processor=processor),
        num_workers=arguments.dataloader_num_workers,
    )
    model.eval()
    loaded = iter(loader)
    for shard, of_shard in batches.items():
        tensors = _embed(model, [next(loaded) for _ in of_shard], batch_size)
        _write_whole(store.path(shard), save(tensors, store.metadata))
        logger.info("wrote %s", store.path(shard).name)


@torch.no_grad()
def _embed(model: FDTModel, batches: list[dict[str, Any]], batch_size: int) -> dict[str, torch.Tensor]:
    """The tensors of a shard."""
    broken, num_captions, patches, captions = [], [], [], []
    for batch in batches:
        broken += batch["broken"]
        num_captions += batch["num_captions"]
        if "pixel_values" in batch:
            patches.append(_to_half(model.get_patch_features(batch["pixel_values"].to(model.device)), "image"))
            captions += _embed_captions(model, batch["captions"].to(model.device), batch_size)
    if len({tuple(part.shape[1:]) for part in patches}) > 1:
        raise ValueError("cache_features needs images of one size, the image processor gives several")
    nothing = torch.zeros(0, dtype=torch.float16)
    return {
        "broken": torch.tensor(broken, dtype=torch.uint8),
        "row_ends": torch.tensor([0, *num_captions]).cumsum(0),
        "caption_ends": torch.tensor([0, *map(len, captions)]).cumsum(0),
        "patch_features": torch.cat(patches) if patches else nothing,
        "token_features": torch.cat(captions) if captions else nothing,
    }


def _embed_captions(model: FDTModel, inputs: BatchFeature, batch_size: int) -> list[torch.Tensor]:
    """The features of every caption's tokens, padding left out; several captions an image take several batches."""
    captions = []
    for start in range(0, len(inputs["input_ids"]), batch_size):
        part = {name: values[start : start + batch_size] for name, values in inputs.items()}
        features = _to_half(model.get_token_features(**part), "text")
        is_token = part["attention_mask"].bool().cpu()
        captions += [row[is_valid] for row, is_valid in zip(features, is_token, strict=True)]
    return captions


def _to_half(features: torch.Tensor, kind: str) -> torch.Tensor:
    half = features.to("cpu", torch.float16)
    if not half.isfinite().all():
        raise ValueError(
            f"cache_features cannot keep what the {kind} tower gives: its largest value is "
            f"{features.abs().max():.3g}, float16 ends at {torch.finfo(torch.float16).max:.0f}"
        )
    return half


def _write_whole(path: Path, data: bytes) -> None:
    """Write a file that has its name only when all of it is on disk."""
    # A name of its own: a process of a run that was killed in part may still be at the same file.
    partial_path = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
    with partial_path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial_path.replace(path)
