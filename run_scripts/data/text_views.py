# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""
Two views of a caption: one with edited words, one with masked ones.

What is drawn comes from the generators of `random` and torch, which the trainer seeds for every batch, so a view does
not depend on the worker that makes it.
"""

import gzip
import random
import string
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase


# Of WordNet: SYNONYMS.md has its licence and tells how the list was derived.
_SYNONYMS_FILE = Path(__file__).with_name("synonyms.txt.gz")

# Of a caption's words so many are edited.
EDITED_SHARE = 0.1

# Of a caption's tokens so many are to be found again: of these 80% are masked, 10% become any token, 10% stay.
# Source: Devlin et al., "BERT", NAACL 2019 (arXiv 1810.04805), section 3.1.
_PREDICTED_SHARE, _MASKED_SHARE, _RANDOM_SHARE = 0.15, 0.8, 0.1

# Where no word is to be found again: torch's own mark.
NO_LABEL = -100


@cache
def load_synonyms() -> dict[str, list[str]]:
    """Synonyms by word, both in lower case."""
    with gzip.open(_SYNONYMS_FILE, "rt", encoding="ascii") as file:
        lines = [line.split() for line in file]
    return {word: synonyms for word, *synonyms in lines}


def _find_synonyms(word: str) -> list[str]:
    """Synonyms of a word of a caption, which may stand beside punctuation; an inflected word has none."""
    return load_synonyms().get(word.strip(string.punctuation).lower(), [])


def replace_synonyms(words: list[str], share: float) -> list[str]:
    """Put a synonym in the place of some of the words that have any."""
    places = [place for place, word in enumerate(words) if _find_synonyms(word)]
    edited = list(words)
    for place in random.sample(places, min(_count_edits(words, share), len(places))):
        core = words[place].strip(string.punctuation)
        edited[place] = words[place].replace(core, random.choice(_find_synonyms(core)))
    return edited


def insert_synonyms(words: list[str], share: float) -> list[str]:
    """Put synonyms of words that are there at random places."""
    synonyms = [synonym for word in words for synonym in _find_synonyms(word)]
    edited = list(words)
    for _ in range(_count_edits(words, share) if synonyms else 0):
        edited.insert(random.randint(0, len(edited)), random.choice(synonyms))
    return edited


def swap_words(words: list[str], share: float) -> list[str]:
    """Exchange pairs of words."""
    edited = list(words)
    for _ in range(_count_edits(words, share) if len(words) > 1 else 0):
        first, second = random.sample(range(len(edited)), 2)
        edited[first], edited[second] = edited[second], edited[first]
    return edited


def delete_words(words: list[str], share: float) -> list[str]:
    """Leave out each word with the probability `share`, but not all of them."""
    return [word for word in words if random.random() >= share] or [random.choice(words)]


def _count_edits(words: list[str], share: float) -> int:
    return max(1, int(share * len(words)))


# Source: Wei and Zou, "EDA: Easy Data Augmentation Techniques", EMNLP 2019 (arXiv 1901.11196). DECLIP_FDT of the
# original draws one of three: it does not insert.
TEXT_EDITS: dict[str, Callable[[list[str], float], list[str]]] = {
    "synonym": replace_synonyms,
    "swap": swap_words,
    "insertion": insert_synonyms,
    "deletion": delete_words,
}


def edit_caption(caption: str, edits: Sequence[str]) -> str:
    """
    A caption after one edit, drawn at random. One that the edit cannot change stays as it is: a single word has
    nothing to be swapped with, and many words have no synonym.

    Args:
        caption: words between white space, at least one.
        edits: names in `TEXT_EDITS` to draw from.

    Returns:
        At least one word.
    """
    return " ".join(TEXT_EDITS[random.choice(edits)](caption.split(), EDITED_SHARE))


def mask_tokens(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, tokenizer: PreTrainedTokenizerBase
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Masked captions, and what was there.

    Args:
        input_ids, attention_mask: (batch_size, num_tokens), as the tokenizer gives them.
        tokenizer: knows the mask token, and which tokens are no words.

    Returns:
        Ids and labels, both (batch_size, num_tokens); labels are `NO_LABEL` where nothing is to be found again.

    Raises:
        ValueError: the tokenizer has no mask token.
    """
    if tokenizer.mask_token_id is None:
        raise ValueError(f"masked words need a tokenizer with a mask token, got a {type(tokenizer).__name__}")
    names = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id")
    special = [token_id for name in names if (token_id := getattr(tokenizer, name)) is not None]
    is_word = attention_mask.bool() & ~torch.isin(input_ids, torch.tensor(special))
    is_predicted = is_word & (torch.rand(input_ids.shape) < _PREDICTED_SHARE)
    draw = torch.rand(input_ids.shape)
    becomes_mask = is_predicted & (draw < _MASKED_SHARE)
    becomes_random = is_predicted & (draw >= _MASKED_SHARE) & (draw < _MASKED_SHARE + _RANDOM_SHARE)
    masked = input_ids.masked_fill(becomes_mask, tokenizer.mask_token_id)
    masked = torch.where(becomes_random, torch.randint(len(tokenizer), input_ids.shape), masked)
    return masked, input_ids.masked_fill(~is_predicted, NO_LABEL)
