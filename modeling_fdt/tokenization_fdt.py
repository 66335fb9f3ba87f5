# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Tokenizer of FDT models: CLIP's byte-pair encoding with the original FDT's vocabulary and text cleaning."""

import gzip
import html
from os import PathLike
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import TokenizersBackend
from transformers.utils import logging


try:
    import ftfy
except ImportError:
    ftfy = None

logger = logging.get_logger(__name__)

# CLIP's byte-pair merges (MIT licence, see BPE_LICENSE), the 48,894 of them that CLIP uses.
_MERGES_FILE = Path(__file__).with_name("bpe_merges.txt.gz")
_LICENCE_FILE = Path(__file__).with_name("BPE_LICENSE")

_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def clean_text(text: str) -> str:
    r"""
    Clean a caption as the original does: repair broken encodings, resolve HTML entities, collapse white space, lower
    the case.

    Broken encodings are repaired by the package `ftfy`. Without it, plain ASCII text is cleaned all the same; for
    other text a warning says once that it was taken as it is.

    Source: yuxiaochen1103/FDT at commit ccf6983, its tokenizer's cleaning (ftfy.fix_text, html.unescape twice).
    """
    if ftfy is not None:
        text = ftfy.fix_text(text)
    elif not text.isascii() or any(not character.isprintable() and not character.isspace() for character in text):
        logger.warning_once(
            "A caption has characters other than plain ASCII, and the package `ftfy`, which repairs broken encodings, "
            "is not installed: such captions are taken as they are. `pip install ftfy` for the original's cleaning."
        )
    text = html.unescape(html.unescape(text))
    return " ".join(text.split()).lower()


class FDTTokenizer(TokenizersBackend):
    r"""
    CLIP's byte-pair tokenizer with the original FDT's 49,409 entries and its cleaning of captions.

    Padding has id 0, which is also the id of `!` before another sign; end and start tokens are 49408 and 49407. The
    text is cleaned before it is encoded ([`clean_text`]); offsets refer to the cleaned text.

    Args:
        vocab (`dict[str, int]`, *optional*): another vocabulary than the original's.
        merges (`list`, *optional*): its merges.
        model_max_length (`int`, defaults to 77): the longest caption in tokens, start and end included.
        licence_file (`str`, *optional*): the licence of another vocabulary, saved beside it as `BPE_LICENSE`.

    Raises:
        ValueError: no vocabulary is given, and the original's is not beside this file, as it is not in a model's
            folder: load the tokenizer of a folder by `from_pretrained`.
    """

    vocab_files_names = {"tokenizer_file": "tokenizer.json", "licence_file": "BPE_LICENSE"}
    model_input_names = ["input_ids", "attention_mask"]
    model: Any = BPE
    _tokenizer: Any

    def __init__(
        self,
        vocab: dict[str, int] | None = None,
        merges: list | None = None,
        bos_token: str = "<|startoftext|>",
        eos_token: str = "<|endoftext|>",
        unk_token: str = "<|endoftext|>",
        mask_token: str = "<|mask|>",
        pad_token: str = "!",
        model_max_length: int = 77,
        licence_file: str | None = None,
        **kwargs,
    ):
        if vocab is None:
            merges, licence_file = _read_merges(), str(_LICENCE_FILE)
            vocab = _build_vocabulary(merges, [mask_token, bos_token, eos_token])
        # Read now: a folder may be gone when the tokenizer is saved to another.
        self._licence = None if licence_file is None else Path(licence_file).read_text(encoding="utf-8")
        self._tokenizer = Tokenizer(
            BPE(vocab=vocab, merges=merges or [], end_of_word_suffix="</w>", unk_token=str(unk_token))
        )
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        self._tokenizer.decoder = decoders.ByteLevel()
        super().__init__(
            bos_token=bos_token,
            eos_token=eos_token,
            unk_token=unk_token,
            model_max_length=model_max_length,
            **kwargs,
        )
        # Official: padding has id 0, and `<|mask|>` in a caption is plain text; kept for checkpoint parity
        # (tests/test_tokenization.py::test_padding_id_is_0 and test_ids_equal_the_originals). Both are named after
        # initialisation, which would turn every `!` in a caption into padding.
        self.pad_token, self.mask_token = pad_token, mask_token
        self._tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos_token} $A {eos_token}",
            special_tokens=[(str(token), self.convert_tokens_to_ids(str(token))) for token in (bos_token, eos_token)],
        )

    def _encode_plus(self, text, text_pair=None, **kwargs):
        if text_pair is not None:
            raise ValueError("FDTTokenizer encodes single captions; `text_pair` is not supported.")
        return super()._encode_plus(_clean_all(text), **kwargs)

    def _save_pretrained(self, save_directory: str | PathLike, *args, **kwargs) -> tuple[str, ...]:
        # What the last call asked for would be saved too; with its padding every `!` in a caption would be padding.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        files = super()._save_pretrained(save_directory, *args, **kwargs)
        if self._licence is None:
            return files
        licence_file = Path(save_directory, self.vocab_files_names["licence_file"])
        licence_file.write_text(self._licence, encoding="utf-8")
        return *files, str(licence_file)

    def _decode(self, token_ids: int | list[int], skip_special_tokens: bool = False, **kwargs) -> str:
        token_ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        if skip_special_tokens and self.eos_token_id in token_ids:
            # What follows the end token is padding, whose id is also that of a sign.
            token_ids = token_ids[: token_ids.index(self.eos_token_id)]
        text = super()._decode(token_ids, skip_special_tokens=skip_special_tokens, **kwargs)
        return text.replace("</w>", " ").strip()


def _clean_all(text: str | list) -> str | list:
    return clean_text(text) if isinstance(text, str) else [_clean_all(part) for part in text]


def _read_merges() -> list[tuple[str, str]]:
    if not _MERGES_FILE.exists():
        raise ValueError(f"`vocab` must be given, for {_MERGES_FILE.name} is not there; or use `from_pretrained`.")
    with gzip.open(_MERGES_FILE, "rt", encoding="utf-8") as file:
        return [(first, second) for first, second in map(str.split, file)]


def _build_vocabulary(merges: list[tuple[str, str]], special_tokens: list[str]) -> dict[str, int]:
    # Ids follow CLIP: printable bytes, the other bytes, the same ending a word, merges in their order, special tokens.
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = [chr(byte) for byte in printable] + [chr(256 + rank) for rank in range(len(others))]
    tokens = characters + [character + "</w>" for character in characters]
    tokens += ["".join(pair) for pair in merges] + special_tokens
    return {token: index for index, token in enumerate(tokens)}


# What is saved brings this code along.
FDTTokenizer.register_for_auto_class()

__all__ = ["FDTTokenizer"]
