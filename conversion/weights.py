# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Weights that strangers wrote: every tensor is one of finite numbers, and no weight is missing."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

from .command_line import reported_as
from .strict_config import MOST_LAYERS, is_integer, shown


_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MOST_LISTED = 10


def check_values(source: str, tensors: Mapping[str, torch.Tensor], names: Iterable[str] | None = None) -> None:
    """
    Refuses tensors that no parameter can be made of.

    Args:
        source: where they come from, for the message.
        tensors: the tensors by name.
        names: which of them to check; all by default.

    Raises:
        ValueError: a tensor is not dense, has no values, is not of a floating-point type, or holds NaN, infinity or
            what float32 cannot hold.
    """
    found = ((name, _find_fault(tensors[name])) for name in (tensors if names is None else names))
    faults = [f"{name}: {fault}" for name, fault in found if fault]
    if faults:
        more = f"\n  and {len(faults) - _MOST_LISTED} more" if len(faults) > _MOST_LISTED else ""
        raise ValueError(f"{source}: damaged weights:\n  " + "\n  ".join(faults[:_MOST_LISTED]) + more)


def _find_fault(tensor: torch.Tensor) -> str | None:
    if tensor.layout != torch.strided or tensor.is_nested:
        return f"it must be dense, not of layout {tensor.layout}"
    if tensor.is_meta:
        return "it has a shape but no values"
    if tensor.dtype not in _DTYPES:
        return f"its type must be one of {list(map(str, _DTYPES))}, got {tensor.dtype}"
    num_bad = int((~torch.isfinite(tensor.float())).sum())
    return f"{num_bad:,} of {tensor.numel():,} values are NaN, infinite or too large for float32" if num_bad else None


def load_checked_model(name: str, model_types: tuple[str, ...], needed: tuple[str, ...] = ("",)) -> PreTrainedModel:
    """
    A checkpoint of transformers in float32, all of whose needed weights were in it.

    Args:
        name: a folder or a name on the Hub. Code that it brings along is not executed.
        model_types: the types of models that are taken.
        needed: prefixes of the parameters that must be there, and finite; all by default.

    Raises:
        ValueError: transformers cannot read it, it is of another type, or a needed weight is missing or damaged.
    """
    unreadable = f"{name}: not a checkpoint that transformers can load"
    # A configuration may name code of its own; without `trust_remote_code` transformers would ask the user about it.
    with reported_as(unreadable):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    if config.model_type not in model_types:
        raise ValueError(f"{name}: the model must be of type {' or '.join(model_types)}, got {config.model_type}")
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        counts = [getattr(part, "num_hidden_layers", 0), *getattr(part, "depths", [])]
        if not all(is_integer(count) and count <= MOST_LAYERS for count in counts):
            raise ValueError(f"{name}: a tower must have at most {MOST_LAYERS:,} layers, got {shown(counts)}")
    options: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True, "trust_remote_code": False}
    with reported_as(unreadable):
        model, report = AutoModel.from_pretrained(name, config=config, **options)
    missing = sorted(key for key in report["missing_keys"] if key.startswith(needed))
    if missing:
        raise ValueError(f"{name}: weights are missing: {missing}")
    parameters = model.state_dict()
    check_values(name, parameters, [key for key in parameters if key.startswith(needed)])
    return model
