"""FDTTokenizer: the original's ids, cleaning, padding, truncation, round trips."""

import json
import pickle
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

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


# Entities, quotes and markup as captions of the web have them; what `ftfy` makes of them is the measure.
ENTITY_CAPTIONS = [
    *("don&rsquo;t", "&ldquo;yes&rdquo;", "it&#39;s", "it&#x2019;s", "rock &amp; roll", "a &lt; b", "&amp;amp;amp;"),
    *("&amp;amp;rsquo;s", "<b>don&rsquo;t</b>", "<b>&amp;quot;hi&amp;quot;</b>", "&QUOT;loud&QUOT;", "AT&T;", "&amp"),
    *("fish &ampchips;", "&#146;tis", "“quoted” text’s", "&quot&semi;", "one\n<b>two&rsquo;s", "&LTIMES;", "&#59;"),
    *("&NBSP;x", "&hellip;", "&#0;", "&unknown;", "a &nbsp; b", "caf&eacute;", "caf&Atilde;&copy;", "&EACUTE;"),
    *("e&#769;", "tab\x0bhere", "\x1b[31mred", "&fflig;", "＆amp；", "ﬁn"),
]


def test_without_ftfy_ids_are_those_with_it_or_there_is_a_warning(monkeypatch):
    captions = ENTITY_CAPTIONS + [row["text"] for row in ORIGINAL_IDS]
    captions += [f"{first}{gap}{second}" for first in ENTITY_CAPTIONS for second in ENTITY_CAPTIONS for gap in " \n"]
    with_ftfy = [clean_text(caption) for caption in captions]
    monkeypatch.setattr(tokenization_fdt, "ftfy", None)
    warned = []
    monkeypatch.setattr(tokenization_fdt.logger, "warning_once", warned.append)
    num_warnings = {}
    for caption, expected in zip(captions, with_ftfy, strict=True):
        warned.clear()
        assert clean_text(caption) == expected or any("`ftfy`" in message for message in warned), caption
        num_warnings[caption] = len(warned)
    # Plain text gives no warning, nor do entities and quotes in it.
    assert not any(num_warnings[caption] for caption in ENTITY_CAPTIONS[:20])


def test_survives_pickling(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert encode_as_the_original(copy) == encode_as_the_original(tokenizer)


def test_text_pairs_are_refused(tokenizer):
    with pytest.raises(ValueError, match="single captions"):
        tokenizer("a", "b")


WELL_FORMED = [
    *("A Photo of a CAT", "  two\tDOGS\u3000\x1f on the\n grass ", "ÉCOLE", "e\u0301cole", "İstanbul", "ПРИВЕТ"),
    *(
        "ΟΔΥΣΣΕΥΣ",
        "ΣΟΦΟΣ ΑΝΗΡ, Σ",
        "Σ.Σ. Α'Σ Σ日",
        "It’s a “Test”",
        "<|startoftext|> hi <|mask|>",
        "",
        "wow!",
        "a\x0b b",
        "👩‍🚀",
    ),
]


def test_other_readers_of_the_file_give_the_same_ids(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    file = str(tmp_path / "tokenizer.json")
    # Of the original's captions those that need no repair: of broken encodings, entities and the like.
    captions = WELL_FORMED + [
        row["text"] for row in ORIGINAL_IDS if clean_text(row["text"]) == " ".join(row["text"].split()).lower()
    ]
    assert len(captions) > 150
    expected = [tokenizer(caption)["input_ids"] for caption in captions]
    reader, fast = Tokenizer.from_file(file), PreTrainedTokenizerFast(tokenizer_file=file)
    assert [encoding.ids for encoding in reader.encode_batch(captions)] == expected
    assert fast(captions)["input_ids"] == expected
    assert [reader.decode(ids) for ids in expected] == [
        tokenizer.decode(tokenizer(caption)["input_ids"], skip_special_tokens=True) for caption in captions
    ]


def test_added_tokens_match_as_with_clip(tmp_path):
    tokenizer = FDTTokenizer()
    assert tokenizer.add_tokens(["NASA"]) == 1
    tokenizer.add_special_tokens({"extra_special_tokens": ["[IMG]"]})
    nasa, image = 49409, 49410
    tokenizer.save_pretrained(tmp_path)
    for each in (tokenizer, FDTTokenizer.from_pretrained(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        plain = each("a rocket")["input_ids"]
        assert each("A NASA rocket")["input_ids"] == [*plain[:2], nasa, *plain[2:]]
        assert each("a nasa rocket")["input_ids"] == each("A NASA rocket")["input_ids"]
        assert each(["A[IMG] Rocket"])["input_ids"] == [[*plain[:2], image, *plain[2:]]]
        assert image not in each("a [img] rocket")["input_ids"]
    reader = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert reader.encode("A[IMG] NASA Rocket").ids == [*plain[:2], image, nasa, *plain[2:]]


def test_added_tokens_match_as_their_options_say():
    tokenizer = FDTTokenizer()
    tokenizer.add_tokens([AddedToken(content, normalized=False, single_word=True) for content in ("NASA", "NASA-2")])
    nasa, nasa_2 = 49409, 49410
    assert nasa in tokenizer("A NASA rocket")["input_ids"] and nasa_2 in tokenizer("A NASA-2 rocket")["input_ids"]
    for caption in ("a nasa rocket", "NASAx", "xNASA"):
        assert not {nasa, nasa_2} & set(tokenizer(caption)["input_ids"]), caption


def test_decoding_leaves_out_padding_on_either_side(tokenizer):
    captions = ["Wow!", "a longer caption"]
    for side in ("left", "right"):
        ids = tokenizer(captions, padding=True, padding_side=side, return_tensors="np")["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == ["wow !", "a longer caption"]
        for row in (ids[0], ids[0].tolist(), list(ids[0]), tuple(ids[0].tolist())):
            assert tokenizer.decode(row, skip_special_tokens=True) == "wow !"
    assert tokenizer.decode(ids[1]) == "<|startoftext|>a longer caption <|endoftext|>"
    assert tokenizer.decode(tokenizer.convert_tokens_to_ids("!</w>"), skip_special_tokens=True) == "!"


def test_saving_leaves_the_tokenizer_as_it_was(tokenizer, tmp_path):
    tokenizer = FDTTokenizer()
    before = tokenizer(["<b>&ldquo;hi&rdquo;", "a longer caption"], padding=True, truncation=True)["input_ids"]
    state = tokenizer.backend_tokenizer.to_str()
    (tmp_path / "tokenizer.json").mkdir()  # cannot be written
    with pytest.raises(Exception, match="directory"):
        tokenizer.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path / "whole")
    assert tokenizer.backend_tokenizer.to_str() == state
    assert FDTTokenizer.from_pretrained(tmp_path / "whole")("<b>&ldquo;hi&rdquo;")["input_ids"] == [
        token for token in before[0] if token
    ]
