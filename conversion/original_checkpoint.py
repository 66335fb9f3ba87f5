# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""The original's checkpoint files, `{"model": state dict, "optimizer": ..., "last_iter": step}`, read and written."""

import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch

from .command_line import in_one_line, reported_as
from .original_config import LARGEST_STEP
from .strict_config import is_integer, shown


_PREFIX = "module."  # DistributedDataParallel's
_ARCHIVE = b"PK\x03\x04"


@dataclass(frozen=True)
class OriginalCheckpoint:
    """The tensors of an original model by name, without `module.`, and the training step they were saved at."""

    tensors: dict[str, torch.Tensor]
    last_iter: int


def _refuse_files_that_are_no_checkpoint(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise ValueError(f"{path}: the file is empty")
    if head.lstrip()[:1] == b"<":
        raise ValueError(f"{path}: this is an HTML or XML page, not a checkpoint; the download page was saved instead")
    if head.startswith(_ARCHIVE):
        if not zipfile.is_zipfile(path):
            raise ValueError(f"{path}: the file is truncated (its archive has no end); download it again")
        _refuse_damaged_archives(path)


def _refuse_damaged_archives(path: Path) -> None:
    """torch.load does not compare the checksums that torch.save wrote, and takes damaged numbers for weights."""
    with reported_as(f"{path}: damaged; download it again"), zipfile.ZipFile(path) as archive:
        packed = [member.filename for member in archive.infolist() if member.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise ValueError(f"{shown(packed[0])} is compressed, which torch.save never does")
        damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the checksum of {shown(damaged)} does not match its contents")


def read_original_checkpoint(path: str | Path) -> OriginalCheckpoint:
    """
    Reads a checkpoint without executing anything in it.

    Args:
        path: a file that `torch.save` wrote; keys of the state dict with or without `module.`.

    Returns:
        `OriginalCheckpoint`; its tensors are on the CPU, memory-mapped where the file's format allows it.

    Raises:
        ValueError: the file is not a checkpoint, is damaged, would need code to be executed, or lacks `model` or
            `last_iter`.
    """
    path = Path(path)
    _refuse_files_that_are_no_checkpoint(path)
    with path.open("rb") as file:
        is_archive = file.read(len(_ARCHIVE)) == _ARCHIVE
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except pickle.UnpicklingError as error:
        reason = next(line for line in str(error).splitlines() if line.strip())
        raise ValueError(
            f"{path}: refused: this file holds more than tensors and plain containers, and reading it could execute "
            f"code ({reason})"
        ) from error
    except Exception as error:  # a damaged pickle makes its reader raise anything
        raise ValueError(f"{path}: damaged, or not a file that torch.save wrote: {in_one_line(error)}") from error

    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ValueError(f"{path}: expected the keys `model`, `optimizer` and `last_iter`, got {_describe(content)}")
    last_iter = content.get("last_iter")
    if not is_integer(last_iter) or not 0 <= last_iter <= LARGEST_STEP:
        raise ValueError(
            f"{path}: `last_iter` must be the training step, an integer of at least 0, got {shown(last_iter)}"
        )
    tensors = {}
    for name, tensor in content["model"].items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{path}: `model` must map names to tensors, got {shown(name)}: {type(tensor).__name__}")
        bare = name.removeprefix(_PREFIX)
        if bare in tensors:
            raise ValueError(f"{path}: `model` holds {shown(bare)} twice, with and without `module.`")
        tensors[bare] = tensor.detach()
    return OriginalCheckpoint(tensors, last_iter)


def _describe(content: object) -> str:
    return f"a mapping of {shown(list(content))}" if isinstance(content, dict) else type(content).__name__


def write_original_checkpoint(path: str | Path, tensors: dict[str, torch.Tensor], last_iter: int) -> None:
    """
    Writes a checkpoint as the original's training does, keys prefixed `module.`, with an empty optimizer state.

    Args:
        path: the file to write.
        tensors: the original's names to tensors.
        last_iter: the training step.
    """
    model = {_PREFIX + name: tensor.contiguous() for name, tensor in tensors.items()}
    torch.save({"model": model, "optimizer": {"state": {}, "param_groups": []}, "last_iter": last_iter}, path)
