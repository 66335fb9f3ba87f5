"""The original's checkpoint files, `{"model": state dict, "optimizer": ..., "last_iter": step}`, read and written."""

import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch


_PREFIX = "module."  # DistributedDataParallel's


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
    if head[:4] == b"PK\x03\x04" and not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: the file is truncated (its archive has no end); download it again")


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
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        reason = next(line for line in str(error).splitlines() if line.strip())
        raise ValueError(
            f"{path}: refused: this file holds more than tensors and plain containers, and reading it could execute "
            f"code ({reason})"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: damaged, or not a file that torch.save wrote ({error})") from error

    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ValueError(f"{path}: expected the keys `model`, `optimizer` and `last_iter`, got {_describe(content)}")
    last_iter = content.get("last_iter")
    if not isinstance(last_iter, int) or isinstance(last_iter, bool) or last_iter < 0:
        raise ValueError(f"{path}: `last_iter` must be the training step, an integer of at least 0, got {last_iter!r}")
    tensors = {}
    for name, tensor in content["model"].items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{path}: `model` must map names to tensors, got {name!r}: {type(tensor).__name__}")
        if name.removeprefix(_PREFIX) in tensors:
            raise ValueError(f"{path}: `model` holds {name.removeprefix(_PREFIX)!r} twice, with and without `module.`")
        tensors[name.removeprefix(_PREFIX)] = tensor
    return OriginalCheckpoint(tensors, last_iter)


def _describe(content: object) -> str:
    return f"a mapping of {sorted(map(str, content))[:8]}" if isinstance(content, dict) else type(content).__name__


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
