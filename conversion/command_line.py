"""What the commands of this package share: arguments from a dataclass, one-line errors, folders that appear whole."""

import logging
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from transformers import HfArgumentParser


Arguments = TypeVar("Arguments")


def run(
    command: Callable[[Arguments], None], arguments_class: type[Arguments], argv: Sequence[str] | None = None
) -> None:
    """
    Parses the command line into `arguments_class` and runs `command` with it.

    Args:
        command: does the work; raises ValueError on input that it refuses.
        arguments_class: a dataclass whose fields are the flags; a flag it does not have is an error.
        argv: the arguments, `sys.argv[1:]` by default.

    Raises:
        SystemExit: with a message on standard error and a non-zero status, if the input is refused.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    summary = sys.modules[command.__module__].__doc__.split("\n\n")[0]
    parser = HfArgumentParser(arguments_class, description=summary, allow_abbrev=False)
    try:
        (arguments,) = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
        command(arguments)
    except ValueError as error:
        sys.exit(f"error: {error}")


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """
    A folder to write to that takes its name only when the block ends well; otherwise nothing remains of it.

    Args:
        path: the folder's final name; it must not exist, or be empty.

    Raises:
        ValueError: `path` is a file or a folder with contents.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path}: already exists; name a new or empty folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.parent / f".{path.name}.unfinished"
    if unfinished.exists():
        raise ValueError(f"{unfinished}: another run is writing {path}, or was killed; delete it to go on")
    unfinished.mkdir()
    try:
        yield unfinished
        unfinished.rename(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
