"""What the original implementation computes: recorded in `../shared/golden`, or the small copy of it in `recorded`.

The copy leaves out what the recorded inputs do not touch: rows of the token embedding of other tokens (checkpoints get
random ones instead), and of every gradient all but about 256 values; its norm is kept. `python -m tests.golden` writes
the copy.
"""

import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file


RECORDED = Path(__file__).parents[2] / "shared" / "golden"
COPY = Path(__file__).parent / "recorded"
CHECKPOINTS = ("tiny_clip_fdt", "tiny_clip")
FDT_CASES = sorted(path.name.removesuffix(".config.json") for path in (COPY / "tiny_clip_fdt").glob("*.config.json"))

_EMBEDDING = "module.encode_text.token_embedding.weight"
_LAST_ITER = 86560
_SHARED = ("pixel_values", "input_ids", "attention_mask", "patch_features", "token_features")
_OUTPUTS = (
    *("image_fdt_features", "image_fdt_weights", "text_fdt_features", "text_fdt_weights"),
    *("image_features", "text_features", "logits_per_image", "logits_per_text", "loss"),
)


class Gradient(NamedTuple):
    """Every `step`-th value of a recorded gradient (flattened), and the norm of all of it."""

    values: torch.Tensor
    step: int
    norm: torch.Tensor


class Recording(NamedTuple):
    """One configuration: inputs and outputs by their recorded names, gradients by the original's parameter names."""

    tensors: dict[str, torch.Tensor]
    gradients: dict[str, Gradient]
    temperature: float | None


def config_path(checkpoint: str, case: str | None = None) -> Path:
    """The original's configuration of a checkpoint; an FDT checkpoint has one per case."""
    return COPY / checkpoint / ("config.json" if case is None else f"{case}.config.json")


def write_checkpoint(checkpoint: str, folder: Path) -> Path:
    """The checkpoint in the original's format: the recorded file, or one written to `folder` from the copy."""
    if RECORDED.is_dir():
        return RECORDED / checkpoint / "ckpt.pth.tar"
    tensors = load_file(COPY / checkpoint / "checkpoint.safetensors")
    token_ids, rows = tensors.pop("token_ids"), tensors.pop("token_embedding_rows")
    embedding = torch.randn(49409, rows.shape[1], generator=torch.Generator().manual_seed(0)) * 0.02
    embedding[token_ids] = rows
    model = {f"module.{name}": tensor for name, tensor in tensors.items()} | {_EMBEDDING: embedding}
    path = folder / "ckpt.pth.tar"
    torch.save({"model": model, "optimizer": {"state": {}, "param_groups": []}, "last_iter": _LAST_ITER}, path)
    return path


def _step(numel: int) -> int:
    return max(1, numel // 256) | 1  # odd, so that it visits all rows and columns of even sizes


def read_recording(checkpoint: str, case: str = "expected") -> Recording:
    """Inputs, outputs and gradients of one configuration."""
    folder = (RECORDED if RECORDED.is_dir() else COPY) / checkpoint
    with safe_open(folder / f"{case}.safetensors", "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    if not RECORDED.is_dir():
        tensors |= load_file(folder / "shared.safetensors")
    gradients = {}
    for name in [name for name in tensors if name.startswith("grad.")]:
        values = tensors.pop(name)
        norm = tensors.pop(f"norm.{name}", None)
        step = 1 if norm is None else int(tensors.pop(f"step.{name}"))
        gradients[name.removeprefix("grad.")] = Gradient(
            values.flatten(), step, values.norm() if norm is None else norm
        )
    temperature = metadata.get("temperature") if metadata else None
    return Recording(tensors, gradients, None if temperature is None else float(temperature))


def _write_copy() -> None:
    shutil.rmtree(COPY, ignore_errors=True)
    for checkpoint in CHECKPOINTS:
        source, target = RECORDED / checkpoint, COPY / checkpoint
        target.mkdir(parents=True)
        for path in source.glob("*config.json"):
            shutil.copyfile(path, target / path.name)
        recordings = {path.stem: read_recording(checkpoint, path.stem) for path in source.glob("*.safetensors")}
        first = next(iter(recordings.values())).tensors
        save_file({name: first[name] for name in _SHARED if name in first}, target / "shared.safetensors")
        for case, recording in recordings.items():
            assert all(torch.equal(recording.tensors[name], first[name]) for name in _SHARED if name in first)
            tensors = {name: recording.tensors[name] for name in _OUTPUTS if name in recording.tensors}
            for name, gradient in recording.gradients.items():
                step = _step(gradient.values.numel())
                tensors[f"grad.{name}"] = gradient.values[::step].contiguous()
                tensors[f"step.grad.{name}"] = torch.tensor(step)
                tensors[f"norm.grad.{name}"] = gradient.norm
            metadata = {} if recording.temperature is None else {"temperature": repr(recording.temperature)}
            save_file(tensors, target / f"{case}.safetensors", metadata)
        model = torch.load(source / "ckpt.pth.tar", weights_only=True)["model"]
        token_ids = first["input_ids"].unique()
        embedding = model.pop(_EMBEDDING)
        tensors = {name.removeprefix("module."): tensor for name, tensor in model.items()}
        tensors |= {"token_ids": token_ids, "token_embedding_rows": embedding[token_ids]}
        save_file(tensors, target / "checkpoint.safetensors")


if __name__ == "__main__":
    _write_copy()
