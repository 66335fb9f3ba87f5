# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""What is read from and written into files everywhere: checksums, tables of Markdown, folders that appear whole."""

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def hash_file(path: str | Path) -> str:
    """SHA-256 of a file in hexadecimal, read piece by piece."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def format_markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]], num_left: int = 1) -> str:
    """A table of Markdown.

    Args:
        headings: of the columns.
        rows: cells as text, one for each column.
        num_left: columns from the left that hold words; the others hold numbers, which are set to the right.
    """
    rules = ["---" if place < num_left else "---:" for place in range(len(headings))]
    lines = [f"| {' | '.join(cells)} |" for cells in (headings, *rows)]
    return "\n".join([lines[0], f"|{'|'.join(rules)}|", *lines[1:]])


@contextmanager
def new_folder(output_dir: str | Path) -> Iterator[Path]:
    """A folder to write to, whose contents appear at `output_dir` when the block ends well; otherwise they go.

    A new folder is written beside its place and renamed, so that what a killed run leaves does not look finished; one
    that is there already, which may be a mount, is filled from within. Neither is in the next run's way.

    Raises:
        ValueError: `output_dir` is a file, or has contents.
    """
    path = Path(output_dir)
    is_new = not path.exists()
    unfinished = path.with_name(f"{path.name}.unfinished") if is_new else path / ".unfinished"
    if not is_new and (not path.is_dir() or set(path.iterdir()) - {unfinished}):
        raise ValueError(f"output_dir must be a new or an empty folder, got {str(path)!r}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        if is_new:
            unfinished.rename(path)
        else:
            for entry in list(unfinished.iterdir()):
                entry.rename(path / entry.name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
