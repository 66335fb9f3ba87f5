# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Tokenizer of FDT models: CLIP's byte-pair encoding with the original FDT's vocabulary and text cleaning."""

import gzip
import html
import re
import unicodedata
from html.entities import html5
from os import PathLike
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import TokenizersBackend
from transformers.utils import logging, to_py_obj


try:
    import ftfy
except ImportError:
    ftfy = None

logger = logging.get_logger(__name__)

# CLIP's byte-pair merges (MIT licence, see BPE_LICENSE), the 48,894 of them that CLIP uses.
_MERGES_FILE = Path(__file__).with_name("bpe_merges.txt.gz")
_LICENCE_FILE = Path(__file__).with_name("BPE_LICENSE")

_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

# Longer names are no entities to ftfy.
_ENTITY = re.compile(r"&#?[0-9A-Za-z]{1,24};")
_SINGLE_QUOTES, _DOUBLE_QUOTES = "\u02bc\u2018\u2019\u201a\u201b", "\u201c\u201d\u201e\u201f"
_STRAIGHT_QUOTES = str.maketrans(dict.fromkeys(_SINGLE_QUOTES, "'") | dict.fromkeys(_DOUBLE_QUOTES, '"'))
_CASED = r"[\p{Lu}\p{Ll}\p{Lt}]"
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f]")


def clean_text(text: str) -> str:
    r"""
    Clean a caption as the original does: repair broken encodings, resolve HTML entities, straighten quotes, collapse
    white space, lower the case.

    Broken encodings are repaired by the package `ftfy`. Without it all the rest is done all the same; where the result
    can differ, as for text that is not plain ASCII, a warning says so once.

    Source: yuxiaochen1103/FDT at commit ccf6983, its tokenizer's cleaning (ftfy.fix_text, html.unescape twice).
    """
    text = _repair_without_ftfy(text) if ftfy is None else ftfy.fix_text(text)
    text = html.unescape(html.unescape(text))
    return " ".join(text.split()).lower()


def _repair_without_ftfy(text: str) -> str:
    """What `ftfy` does to text whose encoding is not broken."""
    lines = text.split("\n")
    # As in ftfy: entities in markup, and in what follows it, are left to `html.unescape`, which resolves them twice.
    num_plain = next((number for number, line in enumerate(lines) if "<" in line), len(lines))
    text = "\n".join([*map(_resolve_entities, lines[:num_plain]), *lines[num_plain:]])
    text = text.translate(_STRAIGHT_QUOTES)
    if not text.isascii() or _CONTROL_CHARACTERS.search(text):
        logger.warning_once(
            "A caption has characters other than plain ASCII, and the package `ftfy`, which repairs broken encodings, "
            "is not installed: such captions are taken as they are. `pip install ftfy` for the original's cleaning."
        )
    return unicodedata.normalize("NFC", text)


def _resolve_entities(text: str) -> str:
    unresolved = None
    while text != unresolved:
        unresolved, text = text, _ENTITY.sub(_resolve_entity, text)
    return text


def _resolve_entity(match: re.Match[str]) -> str:
    entity, resolved = match[0], html.unescape(match[0])
    if entity[1:] in html5:
        return resolved
    if entity.startswith("&#"):
        return entity if ";" in resolved else resolved
    if entity.isupper() and resolved == entity:  # as in captions that are all in capitals
        return html5.get(entity[1:].lower(), entity).upper()
    return entity


def _build_normalizer(*repairs: normalizers.Normalizer) -> normalizers.Normalizer:
    """Repairs, then one space for white space as Python has it, and lower case: added tokens are matched after it."""
    return normalizers.Sequence(
        [
            *repairs,
            normalizers.Replace(Regex(r"[\s\x1c-\x1f]+"), " "),
            # A sigma at the end of a word has a lower case of its own, which Python knows and `Lowercase` does not.
            normalizers.Replace(Regex(rf"(?<={_CASED}|{_CASED}['’.:])Σ(?!['’.:]?{_CASED})"), "ς"),
            normalizers.Lowercase(),
        ]
    )


def _build_file_normalizer() -> normalizers.Normalizer:
    """
    What other readers of `tokenizer.json` do to a caption: as much of `clean_text` as fits into that file.

    It would be too much for captions that are cleaned: quotes that entities in markup stand for are not straightened.
    """
    quotes = ((_SINGLE_QUOTES, "'"), (_DOUBLE_QUOTES, '"'))
    replacements = [normalizers.Replace(Regex(f"[{kind}]"), straight) for kind, straight in quotes]
    return _build_normalizer(normalizers.NFC(), *replacements)


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
        super().__init__(
            bos_token=bos_token,
            eos_token=eos_token,
            unk_token=unk_token,
            model_max_length=model_max_length,
            tokenizer_object=_build_backend(vocab, merges or [], str(unk_token)),
            **kwargs,
        )
        # Official: padding has id 0, and `<|mask|>` in a caption is plain text; kept for checkpoint parity
        # (tests/test_tokenization.py::test_padding_id_is_0 and test_ids_equal_the_originals). Both are named after
        # initialisation, which would turn every `!` in a caption into padding.
        self.pad_token, self.mask_token = pad_token, mask_token
        self.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos_token} $A {eos_token}",
            special_tokens=[(str(token), self.convert_tokens_to_ids(str(token))) for token in (bos_token, eos_token)],
        )

    def decode(self, token_ids: Any, skip_special_tokens: bool = False, **kwargs) -> str | list[str]:
        """As in transformers; without special tokens, padding is left out too, though its id is that of a sign."""
        if skip_special_tokens:
            token_ids = self._cut_padding(to_py_obj(token_ids))
        return super().decode(token_ids, skip_special_tokens=skip_special_tokens, **kwargs)

    def _cut_padding(self, token_ids: Any) -> Any:
        if not isinstance(token_ids, list | tuple):
            return token_ids
        ids = [self._cut_padding(each) for each in token_ids]
        # A caption may name start and end tokens itself, so the outermost of them count.
        start = ids.index(self.bos_token_id) if self.bos_token_id in ids else 0
        end = len(ids) - ids[::-1].index(self.eos_token_id) if self.eos_token_id in ids else len(ids)
        return ids[start:end]

    # transformers has no public place for what comes before the encoding of captions and for what is saved. Both hooks
    # are those of its own tokenizers; test_ids_equal_the_originals and test_round_trip fail if they are not called.

    def _encode_plus(self, text, text_pair=None, **kwargs):
        if text_pair is not None:
            raise ValueError("FDTTokenizer encodes single captions; `text_pair` is not supported.")
        return super()._encode_plus(self._clean(text), **kwargs)

    def _clean(self, text: str | list) -> str | list:
        if not isinstance(text, str):
            return [self._clean(part) for part in text]
        # Added tokens that are matched before the normaliser keep their case; cleaning comes before that.
        cased = [token for token in self.added_tokens_decoder.values() if not token.normalized]
        cased = [token for token in cased if token.content != token.content.lower()]
        if not cased:
            return clean_text(text)
        cased.sort(key=lambda token: len(token.content), reverse=True)  # of two that match, the longer one counts
        patterns = [
            rf"(?<!\w){re.escape(token.content)}(?!\w)" if token.single_word else re.escape(token.content)
            for token in cased
        ]
        parts = re.split(f"({'|'.join(patterns)})", text)
        return " ".join(part if number % 2 else clean_text(part) for number, part in enumerate(parts))

    def _save_pretrained(self, save_directory: str | PathLike, *args, **kwargs) -> tuple[str, ...]:
        files = super()._save_pretrained(save_directory, *args, **kwargs)
        saved = Tokenizer.from_file(files[-1])
        # What the last call asked for would be saved too; with its padding every `!` in a caption would be padding.
        saved.no_padding()
        saved.no_truncation()
        saved.normalizer = _build_file_normalizer()
        saved.save(files[-1])
        if self._licence is None:
            return files
        licence_file = Path(save_directory, self.vocab_files_names["licence_file"])
        licence_file.write_text(self._licence, encoding="utf-8")
        return *files, str(licence_file)


def _build_backend(vocab: dict[str, int], merges: list, unk_token: str) -> Tokenizer:
    backend = Tokenizer(BPE(vocab=vocab, merges=merges, end_of_word_suffix="</w>", unk_token=unk_token))
    backend.normalizer = _build_normalizer()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Replace(Regex(r"</w>\z"), ""), decoders.Replace("</w>", " ")]
    )
    return backend


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
