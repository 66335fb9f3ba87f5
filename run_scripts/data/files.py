# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""What is read from and written into files everywhere: checksums, tables of Markdown."""

import hashlib
from collections.abc import Iterable, Sequence
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
