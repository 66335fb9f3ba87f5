# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Tar shards as img2dataset and webdataset write them, read in passing; a shard that is damaged is noticed."""

import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from run_scripts.data.decoding import IMAGE_EXTENSIONS


class TarShards:
    """Tar shards in which files that differ in the extension only are one pair.

    A row has the columns `image` (the file with an extension of an image) and `caption` (the txt file), as far as the
    shard holds them, and what the json file says, of which a `caption` counts where there is no txt file.

    Args:
        pattern: paths, URLs or `pipe:` commands of the shards, with braces: `pairs/{00000..00331}.tar`.
        caption_column: another name by which json files have the captions.

    Raises:
        ValueError: a local shard does not exist.
    """

    def __init__(self, pattern: str, caption_column: str = "caption"):
        from webdataset.shardlists import expand_urls

        self.urls, self.caption_column = expand_urls(pattern), caption_column
        missing = [url for url in self.urls if ":" not in url and not Path(url).is_file()]
        if missing:
            raise ValueError(
                f"dataset={pattern!r} names {len(self.urls)} tar shards, {len(missing)} of which do not exist, the "
                f"first is {missing[0]!r}"
            )

    def __len__(self) -> int:
        return len(self.urls)

    def name(self, shard: int) -> str:
        return self.urls[shard]

    def read(self, shard: int) -> Iterator[dict[str, Any]]:
        """The rows of one shard; what stops the reading is raised after the last whole pair."""
        from webdataset.gopen import gopen

        errors = []
        for key, files in group_files(_until_error(read_members(gopen(self.urls[shard])), errors)):
            row = {**_read_json(files.get("json")), "__key__": key, "image": _image_of(files)}
            if "txt" in files:
                row["caption"] = files["txt"].decode(errors="replace")
            if self.caption_column != "caption":
                row["caption"] = row.get(self.caption_column)
            if errors and not _is_pair(files):
                break  # the pair in which the shard is cut off: it counts as the shard's fault, not as a broken pair
            yield row
        if errors:
            raise OSError(str(errors[0])) from errors[0]


class _StrictTarInfo(tarfile.TarInfo):
    """Headers of a tar file: Python takes a missing or damaged one for the end, which two blocks of zeros are."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"damaged or cut off before its end: {error}") from error


def read_members(stream) -> Iterator[tuple[str, bytes]]:
    """Paths and contents of the files in a tar stream; hidden files and names that start with `__` are left out."""
    with stream, tarfile.open(fileobj=stream, mode="r|*", tarinfo=_StrictTarInfo) as archive:
        for member in archive:
            name = member.name.rpartition("/")[2]
            if member.isreg() and "." in name and not name.startswith((".", "__")):
                yield member.name, archive.extractfile(member).read()
            archive.members = []  # which it would keep for every file


def _until_error(members: Iterator[tuple[str, bytes]], errors: list[Exception]) -> Iterator[tuple[str, bytes]]:
    """The members before an error, which is put into the list: what was read of the last pair is still to come."""
    try:
        yield from members
    except Exception as error:  # network, compression and tar each have their own
        errors.append(error)


def group_files(members: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Files of each pair by their extension, after the pair's name.

    Neighbours with the same name before the first dot belong together, as webdataset has it (`a.jpg`, `a.seg.png`,
    `a.txt`), unless they are pairs by their names before the last one (`photo.v2.jpg`, `photo.v2.txt`).
    """
    key, stems = None, {}
    for path, content in members:
        folder, slash, name = path.rpartition("/")
        stem, _, extension = path.rpartition(".")
        extension = extension.lower()
        first = folder + slash + name.partition(".")[0]
        if first != key or extension in stems.get(stem, ()):
            yield from _complete(key, stems)
            key, stems = first, {}
        # Names with dates have all dots in common: a pair is complete when another begins.
        for other in [other for other in stems if other not in (key, stem) and _is_pair(stems[other])]:
            yield other, stems.pop(other)
        stems.setdefault(stem, {})[extension] = content
    yield from _complete(key, stems)


def _complete(key: str | None, stems: dict[str, dict[str, bytes]]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The pairs of a group; of one without any, its first file, to be counted for what it lacks."""
    pairs = [stem for stem in stems if _is_pair(stems[stem])]
    if key in stems:
        pairs = [key] if key in pairs or not pairs else pairs
    for stem in pairs or list(stems)[:1]:
        yield stem, stems[stem]


def _image_of(files: dict[str, bytes]) -> bytes | None:
    return next((files[extension] for extension in IMAGE_EXTENSIONS if extension in files), None)


def _is_pair(files: dict[str, bytes]) -> bool:
    return _image_of(files) is not None and ("txt" in files or "json" in files)


def _read_json(member: bytes | None) -> dict:
    # A json file that cannot be read lacks its captions, which is found out where they are asked for.
    try:
        value = json.loads(member or b"{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
