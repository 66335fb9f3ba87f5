# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Captions on their way to the tokenizer."""

from transformers import PreTrainedTokenizerBase


# No token of CLIP's vocabulary stands for more than 32 bytes, and no usual entity for fewer characters than it has.
_CHARACTERS_PER_TOKEN = 64


def cut_caption(caption: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """As much of a caption as can reach a model that truncates: the tokenizer would read all of 10 MB, for seconds."""
    longest = _CHARACTERS_PER_TOKEN * tokenizer.model_max_length
    return caption if len(caption) <= longest else " ".join(caption.split())[:longest]
