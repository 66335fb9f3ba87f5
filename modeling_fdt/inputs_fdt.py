# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""
What FDT models are given: the refusal of what they cannot take, and captions with their padding last.

Names and shapes are always checked. Values are where no accelerator must be waited for: on the CPU.
"""

import difflib
import inspect
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.utils import is_tracing
from transformers.utils.generic import TransformersKwargs

from .towers_fdt import get_context_length, get_tower_class


def check_options(options: dict[str, Any], *tower_configs: PreTrainedConfig) -> None:
    """
    Refuse a keyword argument that a tower would swallow unread.

    Args:
        options (`dict`): keyword arguments; None asks for nothing, whatever its name.
        tower_configs (`PreTrainedConfig`): of the towers of which one must know the name.

    Raises:
        ValueError: a name is known to none of them.
    """
    given = [name for name, value in options.items() if value is not None]
    if not given:
        return
    classes = [get_tower_class(config) for config in tower_configs]
    known = {*TransformersKwargs.__annotations__, "return_dict"}.union(
        *(inspect.signature(tower_class.forward).parameters for tower_class in classes)
    )
    for name in given:
        if name not in known:
            similar = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f"Did you mean `{similar[0]}`?" if similar else f"Its options are {sorted(known)}."
            towers = " or ".join(tower_class.__name__ for tower_class in classes)
            raise ValueError(f"{towers} has no option `{name}`. {hint}")


def check_shape(name: str, value: Any, *sizes: int | str) -> None:
    """
    Refuse what is no tensor of a shape, or holds nothing.

    Args:
        name (`str`): the argument, for the message.
        value: what was given for it.
        sizes (`int` or `str`): of each dimension its size, or its name where any size above 0 will do.

    Raises:
        ValueError: `value` is no tensor, has another shape, or a dimension of size 0.
    """
    is_fit = isinstance(value, torch.Tensor) and value.ndim == len(sizes)
    if not is_fit or any(
        given == 0 or (isinstance(size, int) and given != size) for given, size in zip(value.shape, sizes, strict=True)
    ):
        shape = ", ".join(str(size) for size in sizes)
        raise ValueError(f"`{name}` must be a non-empty tensor of shape ({shape}), got {_describe(value)}.")


def check_captions(input_ids: Any, attention_mask: Any, text_config: PreTrainedConfig) -> None:
    """Refuse token ids and their mask where their shapes are not what the text tower reads, with a ValueError."""
    context_length = get_context_length(text_config)
    check_shape("input_ids", input_ids, "batch_size", "sequence_length")
    if input_ids.shape[1] > context_length:
        raise ValueError(
            f"`input_ids` must have shape (batch_size, sequence_length) with at most {context_length} positions, "
            f"got {tuple(input_ids.shape)}. FDTProcessor truncates longer captions."
        )
    if input_ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"`input_ids` must be integers, got {input_ids.dtype}.")
    check_mask(attention_mask, "input_ids", input_ids)


def check_mask(attention_mask: Any, name: str, tokens: torch.Tensor) -> None:
    """Refuse, with a ValueError, a mask of another shape than the tokens, of that name, or of a row without any."""
    if attention_mask is None:
        return
    shape = tuple(tokens.shape[:2])
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.shape != shape:
        raise ValueError(
            f"`attention_mask` must have the shape of `{name}`, {shape}, got {_describe(attention_mask)}."
        )
    if _can_be_read(attention_mask):
        has_token = (attention_mask != 0).any(dim=1).tolist()
        if not all(has_token):
            raise ValueError(
                f"`attention_mask` must be 1 for at least one token of every row, got none in row "
                f"{has_token.index(False)}."
            )


def check_token_ids(input_ids: torch.Tensor, embeddings: nn.Module) -> None:
    """Refuse, with a ValueError, ids that a text tower's embeddings do not have."""
    if isinstance(embeddings, nn.Embedding) and _can_be_read(input_ids):
        num_embeddings = embeddings.num_embeddings
        is_unknown = (input_ids < 0) | (input_ids >= num_embeddings)
        if is_unknown.any():
            raise ValueError(
                f"`input_ids` must be from 0 to {num_embeddings - 1}, got {input_ids[is_unknown][0].item()}."
            )


def _can_be_read(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" and not is_tracing(tensor)


def _describe(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"


def put_padding_last(inputs: dict[str, Any], attention_mask: torch.Tensor) -> tuple[dict[str, Any], torch.Tensor]:
    """
    The tokens of every caption first, in their order: towers count positions from the left, wherever a tokenizer puts
    the padding.

    Args:
        inputs (`dict`): what a text tower is given; tensors of shape `(batch_size, sequence_length, ...)` are moved.
        attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`): 1 for tokens, 0 for padding.

    Returns:
        The inputs so, and of shape `(batch_size, sequence_length)` the place where each token has gone.
    """
    is_token = attention_mask != 0
    after_tokens = is_token.sum(dim=1, keepdim=True) + (~is_token).cumsum(dim=1)
    place = torch.where(is_token, is_token.cumsum(dim=1), after_tokens) - 1
    positions = torch.arange(attention_mask.shape[1], device=place.device)
    order = torch.zeros_like(place).scatter(1, place, positions.expand_as(place))
    moved = {
        name: take_tokens(value, order)
        if isinstance(value, torch.Tensor) and value.shape[:2] == attention_mask.shape
        else value
        for name, value in inputs.items()
    }
    return moved, place


def take_tokens(values: torch.Tensor, places: torch.Tensor | None) -> torch.Tensor:
    """Of every row the values at the places given for it; None leaves them where they are."""
    if places is None:
        return values
    return values[torch.arange(values.shape[0], device=values.device)[:, None], places]
