# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Parts of a model that do not train."""

import re

from torch import nn


def freeze_parts(model: nn.Module, parts: list[str]) -> None:
    """
    Freeze towers, or all of them but their last layers. No gradient is computed for what is frozen.

    Args:
        model: an FDT model, or another whose towers are modules of the names given.
        parts: each the name of a tower, such as `"vision_tower"`, or `"vision_tower[:-2]"` for all of it but its last
            2 layers and what follows them.

    Raises:
        ValueError: a part is no tower of the model, or the tower has not so many layers.
    """
    for part in parts:
        match = re.fullmatch(r"(\w+)(?:\[:-(\d+)\])?", part)
        tower = getattr(model, match[1], None) if match else None
        if not isinstance(tower, nn.Module) or not match[1].endswith("_tower"):
            towers = [name for name, _ in model.named_children() if name.endswith("_tower")]
            raise ValueError(f"freeze must name parts of {towers}, whole or as in 'vision_tower[:-2]', got {part!r}")
        trained = set() if match[2] is None else set(_last_layers(part, tower, int(match[2])))
        for parameter in tower.parameters():
            if parameter not in trained:
                parameter.requires_grad_(False)


def _last_layers(part: str, tower: nn.Module, number: int) -> list[nn.Parameter]:
    """The parameters of the last layers of a tower, and of what is behind them."""
    names = [name for name, module in tower.named_modules() if isinstance(module, nn.ModuleList)]
    layers = tower.get_submodule(names[0]) if names else []
    if not 0 < number <= len(layers):
        raise ValueError(f"freeze={part!r} must leave 1 to {len(layers)} layers of a {type(tower).__name__}")
    trained = [parameter for layer in layers[-number:] for parameter in layer.parameters()]
    # Modules are registered in the order in which a tower uses them.
    path, module = names[0].split("."), tower
    for name in path:
        children = dict(module.named_children())
        for other in list(children)[list(children).index(name) + 1 :]:
            trained.extend(children[other].parameters())
        module = children[name]
    return trained


def keep_frozen_in_evaluation(model: nn.Module) -> None:
    """
    Keep modules all of whose parameters are frozen in evaluation mode: no dropout, and batch norms keep their
    statistics, which training would change.
    """
    parameters = list(model.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        # Trainer puts the whole model into training mode at every step.
        model.register_forward_pre_hook(_put_into_evaluation_mode)
        return
    for child in model.children():
        keep_frozen_in_evaluation(child)


def _put_into_evaluation_mode(module: nn.Module, inputs: tuple) -> None:
    module.eval()
