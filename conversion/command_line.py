# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""What the commands share: arguments from a dataclass, refusals in one line, folders that appear whole."""

import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from transformers import HfArgumentParser


Arguments = TypeVar("Arguments")
_LONGEST_REASON = 300  # characters; some of transformers' messages list every class that it has


def run(
    command: Callable[[Arguments], None], arguments_class: type[Arguments], argv: Sequence[str] | None = None
) -> None:
    """
    Parses the command line into `arguments_class` and runs `command` with it.

    Args:
        command: does the work; raises ValueError on input that it refuses, OSError where a file cannot be used.
        arguments_class: a dataclass whose fields are the flags; a flag it does not have is an error.
        argv: the arguments, `sys.argv[1:]` by default.

    Raises:
        SystemExit: with a message on standard error and a non-zero status, if the input is refused.
    """
    logging.basicConfig(format="%(message)s")
    for name in (__package__, command.__module__):  # others' chatter stays out
        logging.getLogger(name).setLevel(logging.INFO)
    summary = sys.modules[command.__module__].__doc__.split("\n\n")[0]
    parser = HfArgumentParser(arguments_class, description=summary, allow_abbrev=False)
    try:
        (arguments,) = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
        command(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


@contextmanager
def reported_as(message: str) -> Iterator[None]:
    """
    Turns whatever the block raises into a ValueError of one line. For calls into other packages on files that users
    bring: what such a call raises on damaged or hostile input is any exception at all.

    Raises:
        ValueError: `message`, followed by the reason.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(f"{message}: {in_one_line(error)}") from error


def in_one_line(error: Exception) -> str:
    """What an exception says, of a bounded length."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return reason if len(reason) <= _LONGEST_REASON else reason[:_LONGEST_REASON] + "..."


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """
    A folder to write to whose contents appear at `path` only when the block ends well; otherwise nothing is left.

    A new folder is written beside its place and renamed. One that exists already may be a mount or the working
    directory, which cannot be replaced: its contents are written inside it and moved up.

    Args:
        path: the folder; it must not exist, or be empty. A link is followed.

    Raises:
        ValueError: `path` is a file or a folder with contents, or another run writes it.
        OSError: it cannot be written. What was finished by then is kept.
    """
    path = Path(os.path.realpath(path))
    refusal = f"`output_dir` must be a new or an empty folder, got {str(path)!r}"
    if os.path.lexists(path) and not path.is_dir():
        raise ValueError(refusal)
    if path.is_dir():
        unfinished, is_new = path / ".unfinished", False
    else:
        unfinished, is_new = path.parent / f".{path.name}.unfinished", True
    if unfinished.exists():
        raise ValueError(f"`output_dir`: {unfinished} is there; another run writes it, or was killed: then delete it")
    if not is_new and any(path.iterdir()):
        raise ValueError(refusal)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    if is_new:
        unfinished.rename(path)
        return
    for entry in list(unfinished.iterdir()):
        entry.rename(path / entry.name)
    unfinished.rmdir()
