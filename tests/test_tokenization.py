"""FDTTokenizer: the original's ids, cleaning, padding, truncation, round trips."""

import json
import pickle
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from modeling_fdt import FDTTokenizer, tokenization_fdt
from modeling_fdt.tokenization_fdt import clean_text


ORIGINAL_IDS = json.loads((Path(__file__).parent / "data" / "original_token_ids.json").read_text(encoding="utf-8"))


def encode_as_the_original(tokenizer: FDTTokenizer) -> list[list[int]]:
    return tokenizer([row["text"] for row in ORIGINAL_IDS], truncation=True)["input_ids"]


def test_ids_equal_the_originals(tokenizer):
    assert len(tokenizer) == 49409
    assert encode_as_the_original(tokenizer) == [row["input_ids"] for row in ORIGINAL_IDS]


@pytest.mark.parametrize("load", [FDTTokenizer.from_pretrained, AutoTokenizer.from_pretrained])
def test_round_trip(tokenizer, tmp_path, load):
    tokenizer(["wow!", "a longer caption"], padding=True, truncation=True)  # leaves its state in the backend
    tokenizer.save_pretrained(tmp_path)
    FDTTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    # A saved tokenizer brings its vocabulary along and does not read the package's.
    reloaded = load(tmp_path / "again")
    assert type(reloaded) is FDTTokenizer and reloaded.pad_token_id == 0 and reloaded.model_max_length == 77
    assert encode_as_the_original(reloaded) == encode_as_the_original(tokenizer)


def test_padding_id_is_0(tokenizer):
    batch = tokenizer(["wow!", "a much longer caption!"], padding=True)
    assert batch["input_ids"][0][-3:] == [0, 0, 0] and batch["attention_mask"][0][-3:] == [0, 0, 0]
    assert batch["input_ids"][0][2] == tokenizer.convert_tokens_to_ids("!</w>") != 0


def test_decoding_stops_at_the_end_token(tokenizer):
    ids = tokenizer(["Wow!", "a longer caption"], padding=True)["input_ids"]
    assert tokenizer.batch_decode(ids, skip_special_tokens=True) == ["wow !", "a longer caption"]


def test_long_captions_keep_start_first_tokens_and_end(tokenizer):
    words = " ".join(["cat"] * 100)
    ids = tokenizer(words, truncation=True)["input_ids"]
    assert len(ids) == 77 and ids[0] == 49407 and ids[-1] == 49408 and set(ids[1:-1]) == {ids[1]}


def test_cleaning():
    assert clean_text("  A&amp;amp;B \t\n C ") == "a&b c"
    assert clean_text("cafÃ©") == "café"


def test_without_ftfy_ascii_is_cleaned_alike_and_the_rest_is_warned_of(monkeypatch, caplog):
    with_ftfy = [clean_text(row["text"]) for row in ORIGINAL_IDS if row["text"].isascii()]
    monkeypatch.setattr(tokenization_fdt, "ftfy", None)
    monkeypatch.setattr(tokenization_fdt.logger, "propagate", True)
    warned = []
    monkeypatch.setattr(tokenization_fdt.logger, "warning_once", warned.append)
    assert [clean_text(row["text"]) for row in ORIGINAL_IDS if row["text"].isascii()] == with_ftfy
    clean_text("Ünïcödé")
    assert any("ftfy" in message for message in warned)


def test_survives_pickling(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert encode_as_the_original(copy) == encode_as_the_original(tokenizer)


def test_text_pairs_are_refused(tokenizer):
    with pytest.raises(ValueError, match="single captions"):
        tokenizer("a", "b")
