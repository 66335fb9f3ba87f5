# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""What search asks of an index, whatever answers: the search files of a folder, or a Qdrant collection."""

import re
from dataclasses import dataclass
from datetime import date, datetime, time, timezone
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol

import numpy as np

from run_scripts.evaluation.embedding import Features


@dataclass(frozen=True)
class Hit:
    """One image found: its score (a cosine), and the path and caption of each file that holds it."""

    score: float
    files: list[tuple[Path, str | None]]


@dataclass(frozen=True)
class IndexedFile:
    """A file of an indexed image.

    Attributes:
        path: relative to the folder that was indexed.
        caption: None where the metadata have none.
        modified: when it was last changed, in whole seconds since 1970.
    """

    path: str
    caption: str | None
    modified: int


@dataclass(frozen=True)
class IndexedImage:
    """An image as the database has it.

    Attributes:
        image_id: never used for another image.
        digest: the SHA-256 of its file.
        embeds: (dim,) float32, of length 1.
        codes: (num_active,) int32, rising; of a model without codes none.
        code_weights: (num_active,) float32, above 0.
    """

    image_id: int
    digest: bytes
    embeds: np.ndarray
    codes: np.ndarray
    code_weights: np.ndarray


@dataclass(frozen=True)
class Filters:
    """Which images may be found: those of which one file passes all that is given.

    Attributes:
        subfolder: of the folder that was indexed; the file is in it or below it.
        caption_word: a word of the file's caption, in any case of letters; of several, all are.
        after: the file was last changed on this day in UTC, or later.
        before: the file was last changed before this day in UTC began.

    Raises:
        ValueError: `caption_word` holds no word.
    """

    subfolder: str | None = None
    caption_word: str | None = None
    after: date | None = None
    before: date | None = None

    def __post_init__(self):
        if self.caption_word is not None and not self.words:
            raise ValueError(f"caption_word must hold a letter or digit, got {self.caption_word!r}")

    @cached_property
    def folder(self) -> str | None:
        """The subfolder as `list_folders` spells it."""
        return None if self.subfolder is None else str(PurePosixPath(self.subfolder))

    @cached_property
    def words(self) -> set[str]:
        """What a caption must hold."""
        return find_words(self.caption_word)

    @cached_property
    def seconds(self) -> tuple[int | None, int | None]:
        """The first second of `after` and that of `before`, counted from 1970."""
        return tuple(
            None if day is None else int(datetime.combine(day, time(), timezone.utc).timestamp())
            for day in (self.after, self.before)
        )

    def pass_file(self, file: IndexedFile) -> bool:
        """Whether a file passes them all."""
        start, end = self.seconds
        return (
            (start is None or file.modified >= start)
            and (end is None or file.modified < end)
            # The folder is in `list_folders(file.path)`, which takes ten times as long to write down.
            and (self.folder in (None, ".") or file.path.startswith(f"{self.folder}/"))
            and (not self.words or self.words <= find_words(file.caption))
        )


NO_FILTERS = Filters()


def list_folders(path: str) -> list[str]:
    """The folders that a file is in or below, from the nearest up to `.`, the one that was indexed."""
    return [str(folder) for folder in PurePosixPath(path).parents]


def find_words(text: str | None) -> set[str]:
    """The words of a text, without the case of letters: runs of letters, digits and underscores."""
    return set() if text is None else set(re.findall(r"\w+", text.casefold()))


class SearchIndex(Protocol):
    """An index to search in. It is made from the database of an `IndexWriter`, which stays the only truth.

    Attributes:
        address: where it is.
        model_name, model_hash: the model that made it.
        is_current: whether it is as a whole run of indexing left it.
    """

    address: str
    model_name: str
    model_hash: str
    is_current: bool

    def query(
        self, features: Features, by: Literal["embeds", "codes"], top_k: int, filters: Filters = NO_FILTERS
    ) -> list[Hit]:
        """The images nearest to a query by the cosine of embeddings or of code weights.

        Args:
            features: of one image or caption, from the model that made the index.
            by: what is compared.
            top_k: how many, at least 1; there are fewer hits if the index holds fewer, or, by codes, if fewer share a
                code with the query, or fewer pass the filters.
            filters: which images may be found.

        Returns:
            Hits with falling score.

        Raises:
            ValueError: `top_k` is less than 1, or the model has no codes.
        """

    def count(self) -> int:
        """The number of images."""

    def close(self) -> None:
        """Let go of files or connections."""


def check_query(by: Literal["embeds", "codes"], top_k: int, has_codes: bool) -> None:
    """Raise the ValueErrors that `SearchIndex.query` promises."""
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if by == "codes" and not has_codes:
        raise ValueError("by='codes' needs a model with codes, and the model of this index has none")
