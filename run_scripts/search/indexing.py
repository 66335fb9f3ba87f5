# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Bring an index up to date with a folder of images."""

import csv
import hashlib
import json
import logging
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from run_scripts.data.decoding import IMAGE_EXTENSIONS, decode_image, read_image_file
from run_scripts.evaluation.embedding import embed_inputs, hash_model
from run_scripts.search.arguments import IndexArguments
from run_scripts.search.image_index import FileState, IndexWriter, printable


logger = logging.getLogger(__name__)

EXTENSIONS = tuple(f".{extension}" for extension in sorted(IMAGE_EXTENSIONS))


@dataclass(frozen=True)
class IndexReport:
    """What a run did.

    Attributes:
        num_files, num_images: what the index holds now.
        num_embedded: images embedded by this run.
        num_removed: images that no file holds any more.
        unreadable: for each file that was left out, why.
        num_written, num_deleted: images of the copy that this run changed.
    """

    num_files: int
    num_images: int
    num_embedded: int
    num_removed: int
    unreadable: dict[str, str]
    num_written: int = 0
    num_deleted: int = 0


@dataclass(frozen=True)
class ImageFile:
    """A file as it was read: the SHA-256 of its bytes, and model inputs unless the image is known already."""

    digest: bytes
    inputs: BatchFeature | None


def find_files(folder: Path, caption_column: str) -> tuple[dict[str, FileState], dict[str, str]]:
    """The image files of a folder and its subfolders, hidden ones left out.

    Returns:
        Files by their path relative to the folder, and why others cannot be had.

    Raises:
        ValueError: metadata cannot be read or have no such column.
    """
    captions, files, unreadable = {}, {}, {}
    for directory, subfolders, names in os.walk(folder):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        prefix = Path(directory).relative_to(folder)
        captions |= {
            (prefix / name).as_posix(): caption for name, caption in read_metadata(Path(directory), caption_column)
        }
        for name in sorted(names):
            if name.startswith(".") or not name.lower().endswith(EXTENSIONS):
                continue
            path = (prefix / name).as_posix()
            try:
                path.encode()
                status = os.stat(os.path.join(directory, name))
            except UnicodeEncodeError:
                unreadable[ascii(path)] = "its name is not UTF-8"
            except OSError as error:
                unreadable[path] = str(error)
            else:
                if stat.S_ISREG(status.st_mode):
                    files[path] = FileState(status.st_size, status.st_mtime_ns, captions.get(path))
                else:
                    unreadable[path] = "not a regular file"
    return files, unreadable


def read_metadata(folder: Path, caption_column: str) -> Iterator[tuple[str, str | None]]:
    """File names and captions from the metadata that a folder may hold, in the form of `datasets`' imagefolder."""
    for name in ("metadata.csv", "metadata.jsonl"):
        path = folder / name
        if not path.is_file():
            continue
        with path.open(encoding="utf-8-sig", newline="") as file:
            try:
                rows = (
                    csv.DictReader(file)
                    if name.endswith(".csv")
                    else (json.loads(line) for line in file if line.strip())
                )
                rows = list(rows)
            except (ValueError, RecursionError, csv.Error) as error:
                raise ValueError(f"{path} cannot be read: {error}") from error
        for row in rows:
            if not isinstance(row, dict):
                raise ValueError(f"{path} must have an object with file_name in every line, got {row!r:.200}")
            for column in ("file_name", caption_column):
                if column not in row:
                    raise ValueError(
                        f"caption_column={caption_column!r}: {path} lacks {column!r}, it has {list(row)}; give "
                        "--caption_column"
                    )
            file_name, caption = row["file_name"], row[caption_column]
            if not (_is_text(file_name) and (caption is None or _is_text(caption))):
                raise ValueError(f"{path} must have file names and captions of text, got {row!r:.200}")
            yield file_name, caption


def _is_text(value: Any) -> bool:
    # JSON can spell half of a surrogate pair, which no file name or database can hold.
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def read_image(path: Path, processor: ProcessorMixin, known: set[bytes]) -> ImageFile | str:
    """Read a file and prepare its image for the model, or say why it cannot be done."""
    try:
        data = read_image_file(path)
        digest = hashlib.sha256(data).digest()
        if digest in known:
            return ImageFile(digest, None)
        return ImageFile(digest, processor(images=[decode_image(data)], return_tensors="pt"))
    except ValueError as error:
        return str(error)


def index_images(model: PreTrainedModel, processor: ProcessorMixin, arguments: IndexArguments) -> IndexReport:
    """Bring an index up to date with its folder of images; arguments as in `IndexArguments`.

    Raises:
        ValueError: there is no image that can be read, or the index cannot be written (see `IndexWriter`).
    """
    folder = Path(arguments.images)
    files, unreadable = find_files(folder, arguments.caption_column)
    if not files:
        raise ValueError(f"images={arguments.images!r} holds no file with an extension of {EXTENSIONS}")
    name = str(Path(arguments.model).resolve()) if Path(arguments.model).exists() else arguments.model
    with ExitStack() as opened:
        writer = opened.enter_context(IndexWriter(Path(arguments.index), folder, name, hash_model(model, processor)))
        copy = opened.enter_context(_open_copy(arguments.copy_to, writer))
        recorded = writer.file_states()
        is_same = {path for path, state in files.items() if _key(state) == _key(recorded.get(path))}
        captions = {path: files[path].caption for path in is_same if files[path].caption != recorded[path].caption}
        writer.set_captions(captions)
        to_read = [path for path in files if path not in is_same]
        known = writer.digests()
        num_embedded = 0
        progress = tqdm(total=len(to_read), unit="file", disable=None)
        with progress, ThreadPoolExecutor() as pool:
            for start in range(0, len(to_read), arguments.batch_size):
                batch = to_read[start : start + arguments.batch_size]
                images = pool.map(read_image, [folder / path for path in batch], repeat(processor), repeat(known))
                new, new_files = {}, {}
                for path, image in zip(batch, images, strict=True):
                    if isinstance(image, str):
                        unreadable[path] = image
                        continue
                    new_files[path] = (files[path], image.digest)
                    if image.inputs is not None:
                        new[image.digest] = image.inputs  # once, however many files of the batch hold it
                features = embed_inputs(model, "image", _join(list(new.values()))) if new else None
                writer.add(list(new), features, new_files)
                known.update(new)
                num_embedded += len(new)
                progress.update(len(batch))
        for path, reason in unreadable.items():
            logger.warning("left out %s: %s", printable(path), printable(reason))
        kept = [path for path in files if path not in unreadable]
        if not kept:
            raise ValueError(f"images={arguments.images!r}: none of {len(files)} files can be read as an image")
        num_removed = writer.keep_only(kept)
        writer.write_search_files(arguments.dense_index, arguments.codes_per_image)
        changes = (0, 0) if copy is None else copy.update(arguments.dense_index, arguments.codes_per_image)
        return IndexReport(len(kept), len(writer.digests()), num_embedded, num_removed, unreadable, *changes)


def _open_copy(address: str | None, writer: IndexWriter) -> AbstractContextManager:
    """The copy to bring up to date; opened before anything is embedded, so that it is refused first."""
    if address is None:
        return nullcontext()
    from run_scripts.search.qdrant_index import QdrantWriter  # an extra

    return QdrantWriter(address, writer)


def _key(state: FileState | None) -> tuple[int, int] | None:
    return None if state is None else (state.size, state.mtime_ns)


def _join(inputs: list[BatchFeature]) -> BatchFeature:
    return BatchFeature({name: torch.cat([one[name] for one in inputs]) for name in inputs[0]})
