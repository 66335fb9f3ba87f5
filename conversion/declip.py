# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""What DECLIP+FDT trains beside its model: two heads and a queue of captions, from the original and back."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedConfig

from .command_line import reported_as
from .key_map import DECLIP_HEADS, DECLIP_QUEUE, Entry, to_original, to_ours
from .original_config import VOCAB_SIZE, OriginalConfig
from .weights import check_values


DECLIP_NAME = "declip.safetensors"

# Of the original's SimSiam heads: what they map to, and the predictor's bottleneck.
_PROJECTION_DIM, _BOTTLENECK_DIM = 1024, 512


def declip_state(tensors: Mapping[str, torch.Tensor], config: OriginalConfig) -> dict[str, torch.Tensor]:
    """
    Heads and queue of a checkpoint by the names of `declip.safetensors`.

    Args:
        tensors: the checkpoint's tensors.
        config: the run's configuration.

    Returns:
        Nothing for other model types, nor for a checkpoint without heads; no queue where the checkpoint has none, or
        one that nothing was put in.

    Raises:
        ValueError: a head is incomplete, or a tensor has another shape than the configuration says, or is damaged.
    """
    names = {entry.original for entry in DECLIP_HEADS}
    if config.model_type != "declip_fdt_vitb32" or not names & tensors.keys():
        return {}
    entries = [*DECLIP_HEADS]
    bank, position = (tensors.get(entry.original) for entry in DECLIP_QUEUE)
    if bank is not None and bank.numel() > 0:
        entries += DECLIP_QUEUE
    _check(tensors, entries, _expected_shapes(config.codebook.dim, config.text.width, bank))
    # Of half precision in the original.
    return {name: _as_float32(tensor).contiguous() for name, tensor in to_ours(tensors, entries).items()}


def original_declip_tensors(path: str, config: PreTrainedConfig) -> dict[str, torch.Tensor]:
    """
    Heads and queue by the original's names.

    Args:
        path: `declip.safetensors`, as training or `convert_fdt_to_hf` writes it.
        config: that of the model.

    Raises:
        ValueError: the file cannot be read, or does not hold heads of the original's sizes.
    """
    with reported_as(f"{path}: no heads of DeCLIP"):
        ours = load_file(path)
    known = {name for entry in DECLIP_HEADS + DECLIP_QUEUE for name in entry.ours}
    unknown = sorted(ours.keys() - known)
    if unknown:
        raise ValueError(f"{path}: nothing maps {unknown}")
    entries = [entry for entry in DECLIP_HEADS + DECLIP_QUEUE if entry.ours[0] in ours]
    tensors = to_original(ours, entries)
    bank = tensors.get(DECLIP_QUEUE[0].original)
    required = [*DECLIP_HEADS, *(DECLIP_QUEUE if any(entry in entries for entry in DECLIP_QUEUE) else ())]
    _check(tensors, required, _expected_shapes(config.codebook_dim, config.text_config.hidden_size, bank))
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def as_declip(raw: dict[str, Any], heads: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """
    The configuration of CLIP+FDT as one of DECLIP+FDT.

    Args:
        raw: the original's configuration, as `original_config_of` gives it.
        heads: by the original's names.

    Raises:
        ValueError: the image tower is none that DECLIP+FDT has.
    """
    model = raw["model"]
    if not model["type"].startswith("clip_fdt_vit"):
        raise ValueError(f"`declip_heads` are for a model with CLIP's image tower, got {model['type']}")
    kwargs = dict(model["kwargs"])
    section = kwargs.pop("fdt") | {"feature_dim": heads["projector.linear1.weight"].shape[1], "text_mask_type": "MLM"}
    bank = heads.get(DECLIP_QUEUE[0].original)
    if bank is not None:
        section |= {"return_nn_bank": True, "nn_size": bank.shape[1]}
    return {**raw, "model": {"type": "declip_fdt_vitb32", "kwargs": {**kwargs, "clip": section}}}


def _expected_shapes(dim: int, token_dim: int, bank: torch.Tensor | None) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    linears = {
        **{f"projector.linear{n}": (_PROJECTION_DIM, dim if n == 1 else _PROJECTION_DIM) for n in (1, 2, 3)},
        "predictor.linear1": (_BOTTLENECK_DIM, _PROJECTION_DIM),
        "predictor.layer2": (_PROJECTION_DIM, _BOTTLENECK_DIM),
        "text_label_predictor": (VOCAB_SIZE, token_dim),
    }
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    norms = {**{f"projector.bn{n}": _PROJECTION_DIM for n in (1, 2, 3)}, "predictor.bn1": _BOTTLENECK_DIM}
    for name, size in norms.items():
        shapes |= {f"{name}.{kind}": (size,) for kind in ("weight", "bias", "running_mean", "running_var")}
        shapes[f"{name}.num_batches_tracked"] = ()
    if bank is not None:
        queue, position = (entry.original for entry in DECLIP_QUEUE)
        shapes |= {queue: (dim, bank.shape[-1]), position: (1,)}
    return shapes


def _check(
    tensors: Mapping[str, torch.Tensor], entries: Iterable[Entry], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    names = [entry.original for entry in entries]
    missing = [name for name in names if name not in tensors]
    if missing:
        raise ValueError(f"the heads of DECLIP+FDT are incomplete: {missing} are missing")
    wrong = [
        f"{name}: {tuple(tensors[name].shape)}, expected {shapes[name]}"
        for name in names
        if tuple(tensors[name].shape) != shapes[name]
    ]
    if wrong:
        raise ValueError("the heads of DECLIP+FDT have other shapes than the config says:\n  " + "\n  ".join(wrong))
    counts = [name for name in names if not tensors[name].is_floating_point()]
    odd = [name for name in counts if not name.endswith(("num_batches_tracked", "bank_ptr"))]
    if odd:
        raise ValueError(f"the heads of DECLIP+FDT hold integers where weights belong: {odd}")
    check_values("heads of DECLIP+FDT", tensors, [name for name in names if name not in counts])


def _as_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
