# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Embed images of folders, tar shards and parquet files into Parquet, by a copy of the model on every device.

Files are cut into parts: one tar shard or parquet file, or up to `FILES_PER_PART` image files. Ray Data hands a part
to a free actor, which reads, embeds and writes it batch by batch: so no queue of images grows. A part becomes one
Parquet file, which gets its name only when it is whole; a restart reads which files those name and embeds the rest.
"""

import os
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from PIL import Image
from tqdm import tqdm

from run_scripts.data.decoding import IMAGE_EXTENSIONS, ImageError, decode_image
from run_scripts.data.tar_shards import read_members
from run_scripts.evaluation.embedding import Features, embed_images, hash_model, iterate_batches, load_model
from run_scripts.search.arguments import EmbedArguments


FILES_PER_PART = 1024
TAR, PARQUET = (".tar", ".tar.gz", ".tgz"), (".parquet",)
IMAGES = tuple(f".{extension}" for extension in IMAGE_EXTENSIONS)
# By which the Parquet files of one folder are known to be of one model.
_MODEL_HASH = b"model_hash"


@dataclass(frozen=True)
class EmbedReport:
    """What a run did.

    Attributes:
        num_files: read by this run.
        num_images: embedded by this run.
        num_broken: rows with a reason instead of an embedding.
        num_finished: files that an earlier run had finished.
    """

    num_files: int
    num_images: int
    num_broken: int
    num_finished: int


@dataclass(frozen=True)
class FoundImage:
    """An image before it is decoded.

    Attributes:
        file: which holds it.
        key: its name in a tar shard or its row in a parquet file; None for a file of one image, and where a shard
            cannot be read on.
        value: what `decode_image` takes; None if there is none.
        reason: why there is none.
    """

    file: str
    key: str | None
    value: bytes | str | dict | None
    reason: str | None = None


def make_schema(dim: int, dtype: str, model_hash: str) -> pa.Schema:
    """The columns of the Parquet files; see docs/embedding.md."""
    columns = {
        "file": pa.string(),
        "key": pa.string(),
        "embeds": pa.list_(getattr(pa, dtype)(), dim),
        "codes": pa.list_(pa.int32()),
        "code_weights": pa.list_(pa.float32()),
        "reason": pa.string(),
    }
    return pa.schema(columns, metadata={_MODEL_HASH: model_hash.encode()})


def list_image_files(images: str) -> list[str]:
    """Addresses of all files to read, in order: images, tar shards and parquet files, hidden ones left out.

    Raises:
        ValueError: there are none.
    """
    file_system, root = url_to_fs(images)
    try:
        paths = [root] if file_system.isfile(root) else file_system.find(root)
    except OSError as error:
        raise ValueError(f"images={images!r} cannot be listed: {error}") from error
    sources = sorted(
        path
        for path in paths
        if path.lower().endswith(IMAGES + TAR + PARQUET)
        and not any(part.startswith(".") for part in path.removeprefix(root).split("/"))
    )
    if not sources:
        raise ValueError(f"images={images!r} holds no file that ends in one of {IMAGES + TAR + PARQUET}")
    return [_address(file_system, path) for path in sources]


def make_parts(sources: list[str]) -> list[list[str]]:
    """Files that become one Parquet file each."""
    is_image = {source: source.lower().endswith(IMAGES) for source in sources}
    parts = [[source] for source in sources if not is_image[source]]
    return parts + list(iterate_batches((source for source in sources if is_image[source]), FILES_PER_PART))


def read_finished(output_dir: str, schema: pa.Schema, retry_failed: bool) -> set[str]:
    """The files that earlier runs have finished.

    Args:
        retry_failed: whether files that gave no embedding at all are left out. No other file may be read again, or
            the results would hold its images twice.

    Raises:
        ValueError: another model or another type of embeddings made them.
    """
    file_system, root = url_to_fs(output_dir)
    finished = set()
    for path in sorted(file_system.glob(f"{root}/*.parquet")):
        with file_system.open(path, "rb") as file:
            parquet = pq.ParquetFile(file)
            found = parquet.schema_arrow
            if not found.equals(schema) or (found.metadata or {}).get(_MODEL_HASH) != schema.metadata[_MODEL_HASH]:
                raise ValueError(
                    f"output_dir={output_dir!r}: {path} was not made by this model with this embeds_dtype; give "
                    "another folder"
                )
            for group in range(parquet.num_row_groups):
                rows = parquet.read_row_group(group, ["file", "reason"])
                if retry_failed:
                    rows = rows.filter(pc.is_null(rows["reason"]))
                finished.update(rows["file"].unique().to_pylist())
    return finished


def check_image_column(sources: list[str], image_column: str) -> None:
    """Raise a ValueError if the first parquet file has no such column."""
    for source in [source for source in sources if source.lower().endswith(PARQUET)][:1]:
        with fsspec.open(source, "rb") as file:
            names = pq.read_schema(file).names
        if image_column not in names:
            raise ValueError(f"image_column={image_column!r} is no column of {source}; it has {names}")


def read_source(source: str, image_column: str) -> Iterator[FoundImage]:
    """The images of one file; what stops the reading becomes the last one's reason."""
    if source.lower().endswith(IMAGES):
        yield FoundImage(source, None, source)
        return
    read = _read_tar(source) if source.lower().endswith(TAR) else _read_parquet(source, image_column)
    is_empty = True
    try:
        for key, value in read:
            is_empty = False
            yield FoundImage(source, key, value, None if value is not None else "there is no image")
    except Exception as error:  # network, compression and formats each have their own
        yield FoundImage(source, None, None, f"cannot be read on: {' '.join(str(error).split())}")
        return
    if is_empty:
        yield FoundImage(source, None, None, "holds no image")


def _read_tar(source: str) -> Iterator[tuple[str, bytes]]:
    for name, content in read_members(fsspec.open(source, "rb").open()):
        if name.lower().endswith(IMAGES):
            yield name, content


def _read_parquet(source: str, image_column: str) -> Iterator[tuple[str, Any]]:
    with fsspec.open(source, "rb") as file:
        row = 0
        for batch in pq.ParquetFile(file).iter_batches(64, columns=[image_column]):
            for value in batch.column(image_column).to_pylist():
                yield str(row), value
                row += 1


class PartEmbedder:
    """An actor: a model on one device that turns parts into Parquet files.

    Args:
        arguments: of the command; `device` is set.
        schema: from `make_schema`.
    """

    def __init__(self, arguments: EmbedArguments, schema: pa.Schema):
        self.arguments, self.schema = arguments, schema
        self.model, self.processor = load_model(arguments.model, arguments.device)

    def __call__(self, parts: dict[str, Any]) -> dict[str, list[int]]:
        """Rows of numbers for rows of parts, as `map_batches` has it."""
        counts = [self.embed_part(list(files)) for files in parts["files"]]
        num_files, num_images, num_broken = zip(*counts, strict=True)
        return {"num_files": list(num_files), "num_images": list(num_images), "num_broken": list(num_broken)}

    def embed_part(self, files: list[str]) -> tuple[int, int, int]:
        """Write one Parquet file; the numbers of files, images and broken ones."""
        file_system, root = url_to_fs(self.arguments.output_dir)
        name = uuid.uuid4().hex
        # Neither `*.parquet` nor a reader of the folder takes a part that is not whole for a result.
        unfinished, written = f"{root}/.{name}.unfinished", f"{root}/{name}.parquet"
        file_system.makedirs(root, exist_ok=True)
        found = (image for file in files for image in read_source(file, self.arguments.image_column))
        num_images, num_broken = 0, 0
        with file_system.open(unfinished, "wb") as file, pq.ParquetWriter(file, self.schema) as writer:
            for rows in self.embed_found(found):
                writer.write_table(pa.Table.from_pylist(rows, schema=self.schema))
                num_bad = sum("reason" in row for row in rows)
                num_images, num_broken = num_images + len(rows) - num_bad, num_broken + num_bad
        file_system.mv(unfinished, written)
        return len(files), num_images, num_broken

    def embed_found(self, found: Iterable[FoundImage]) -> Iterator[list[dict[str, Any]]]:
        """Rows of the schema, batch by batch in the order of the images; those of a batch are decoded side by side."""
        with ThreadPoolExecutor() as pool:
            for batch in iterate_batches(found, self.arguments.batch_size):
                decoded = list(pool.map(_decode, batch))
                images = [image for image in decoded if isinstance(image, Image.Image)]
                features = embed_images(self.model, self.processor, images, len(images)) if images else None
                positions = iter(range(len(images)))
                yield [
                    {"file": one.file, "key": one.key, "reason": image}
                    if isinstance(image, str)
                    else {"file": one.file, "key": one.key, **self._to_row(features, next(positions))}
                    for one, image in zip(batch, decoded, strict=True)
                ]

    def _to_row(self, features: Features, position: int) -> dict[str, Any]:
        embeds = features.embeds[position].numpy().astype(self.arguments.embeds_dtype)
        if features.code_weights is None:
            return {"embeds": embeds}
        code_weights = features.code_weights[position]
        codes = code_weights.nonzero()[:, 0]
        return {"embeds": embeds, "codes": codes.int().numpy(), "code_weights": code_weights[codes].numpy()}


def _decode(found: FoundImage) -> Image.Image | str:
    """The image, or why there is none."""
    if found.reason is not None:
        return found.reason
    try:
        return decode_image(found.value)
    except ImageError as error:
        return str(error)


@contextmanager
def start_ray() -> Iterator[Any]:
    """Ray as long as it is needed: the cluster that RAY_ADDRESS names, or one on this machine alone."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # it reports to its makers otherwise
    import ray
    import ray.data

    local = {} if os.environ.get("RAY_ADDRESS") else {"address": "local", "_node_ip_address": "127.0.0.1"}
    ray.init(include_dashboard=False if local else None, log_to_driver=False, logging_level="warning", **local)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield ray
    finally:
        ray.shutdown()


def embed_files(arguments: EmbedArguments) -> EmbedReport:
    """Embed all images that are not embedded yet.

    Raises:
        ValueError: there are no images, the model cannot be loaded, or another one made what the folder holds.
    """
    sources = list_image_files(arguments.images)
    model, processor = load_model(arguments.model, "cpu")
    blank = embed_images(model, processor, [Image.new("RGB", (32, 32))])
    schema = make_schema(blank.embeds.shape[1], arguments.embeds_dtype, hash_model(model, processor))
    del model
    finished = read_finished(arguments.output_dir, schema, arguments.retry_failed)
    to_do = [source for source in sources if source not in finished]
    totals = dict.fromkeys(("num_files", "num_images", "num_broken"), 0)
    check_image_column(to_do, arguments.image_column)
    if to_do:
        for row in _run_parts(make_parts(to_do), arguments, schema):
            totals = {name: total + row[name] for name, total in totals.items()}
    return EmbedReport(**totals, num_finished=len(sources) - len(to_do))


def _run_parts(parts: list[list[str]], arguments: EmbedArguments, schema: pa.Schema) -> Iterator[dict[str, int]]:
    with start_ray() as ray:
        num_gpus = int(ray.cluster_resources().get("GPU", 0))
        device = arguments.device or ("cuda" if num_gpus else "cpu")
        num_devices = num_gpus if device.startswith("cuda") else int(ray.cluster_resources()["CPU"])
        if num_devices == 0:
            raise ValueError(f"device={device!r}: Ray finds no GPU")
        num_workers = arguments.num_workers or num_devices
        if num_workers > num_devices:
            raise ValueError(
                f"num_workers must be at most {num_devices}, the devices that Ray finds, got {num_workers}"
            )
        arguments = replace(arguments, device=device)
        rows = ray.data.from_items([{"files": part} for part in parts], override_num_blocks=len(parts)).map_batches(
            PartEmbedder,
            fn_constructor_args=(arguments, schema),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(num_workers, len(parts))),
            num_gpus=1 if device.startswith("cuda") else 0,
            num_cpus=1,
        )
        yield from tqdm(rows.iter_rows(), total=len(parts), unit="part", disable=None)


def _address(file_system: AbstractFileSystem, path: str) -> str:
    is_local = "file" in file_system.protocol or file_system.protocol == "file"
    return path if is_local else file_system.unstrip_protocol(path)
