"""Edited and masked captions: what each edit may do, how often, and that the same seed gives the same view."""

import random
from collections import Counter

import pytest
import torch

from run_scripts.data.batches import ReproducibleCollator
from run_scripts.data.text_views import NO_LABEL, TEXT_EDITS, edit_caption, load_synonyms, mask_tokens


CAPTION = "A large dog, a small cat and a car in front of the picture of a person"


@pytest.fixture(autouse=True)
def seeded() -> None:
    random.seed(0)


def test_the_list_of_synonyms():
    synonyms = load_synonyms()
    assert "large" in synonyms["big"] and "image" in synonyms["picture"] and "automobile" in synonyms["car"]
    assert len(synonyms) == 6846
    assert all(word not in row and row for word, row in synonyms.items())
    assert not {"the", "and", "can", "of"} & synonyms.keys()


def edit_often(name: str, caption: str) -> list[list[str]]:
    return [edit_caption(caption, [name]).split() for _ in range(200)]


def test_a_synonym_takes_the_place_of_a_word_and_leaves_its_punctuation():
    words = CAPTION.split()
    for edited in edit_often("synonym", CAPTION):
        (place,) = [place for place, (old, new) in enumerate(zip(words, edited, strict=True)) if old != new]
        assert edited[place] in load_synonyms()[words[place]]
    assert {tuple(edited) for edited in edit_often("synonym", "two big, red dogs")} >= {
        ("two", "large,", "red", "dogs")
    }


def test_insertion_adds_a_synonym_of_a_word_that_is_there():
    words = CAPTION.split()
    known = {synonym for word in words for synonym in load_synonyms().get(word, [])}
    for edited in edit_often("insertion", CAPTION):
        assert len(edited) == len(words) + 1 and (Counter(edited) - Counter(words)).keys() <= known


def test_a_swap_moves_two_words():
    words = "one two three four".split()
    for edited in edit_often("swap", "one two three four"):
        assert sorted(edited) == sorted(words) and sum(old != new for old, new in zip(words, edited, strict=True)) == 2


def test_deletion_leaves_out_a_tenth_and_never_all():
    lengths = [len(edited) for edited in edit_often("deletion", " ".join(map(str, range(20))))]
    # The mean of 200 binomial numbers (20, 0.9) has a standard deviation of 0.1.
    assert 17.5 < sum(lengths) / 200 < 18.5
    assert set(map(tuple, edit_often("deletion", "dog"))) == {("dog",)}


@pytest.mark.parametrize("name", TEXT_EDITS)
def test_a_single_word_without_a_synonym_stays(name):
    assert edit_caption("qqq", [name]) == "qqq"


def test_edits_are_drawn_and_reproducible_by_the_batch(tokenizer):
    def collate(rows):
        edited = [edit_caption(row, list(TEXT_EDITS)) for row in rows]
        inputs = tokenizer(rows, return_tensors="pt", padding=True)
        return edited, mask_tokens(inputs["input_ids"], inputs["attention_mask"], tokenizer)

    collator = ReproducibleCollator(collate, seed=1)
    rows = [f"{CAPTION} {number}" for number in range(8)]
    edited, (masked, labels) = collator(rows)
    assert len({len(caption.split()) for caption in edited}) > 2  # shorter, as long and longer
    random.random(), torch.rand(3)  # another worker has drawn otherwise before
    again, (masked_again, labels_again) = collator(rows)
    assert again == edited and torch.equal(masked_again, masked) and torch.equal(labels_again, labels)
    collator.set_epoch(1)
    assert collator(rows)[0] != edited


def test_masked_tokens(tokenizer):
    inputs = tokenizer([CAPTION] * 400 + ["dog !"], return_tensors="pt", padding=True)
    ids, is_token = inputs["input_ids"], inputs["attention_mask"].bool()
    masked, labels = mask_tokens(ids, inputs["attention_mask"], tokenizer)
    is_predicted = labels != NO_LABEL
    assert torch.equal(labels[is_predicted], ids[is_predicted]) and torch.equal(
        masked[~is_predicted], ids[~is_predicted]
    )
    is_word = is_token & (ids != tokenizer.bos_token_id) & (ids != tokenizer.eos_token_id)
    assert not (is_predicted & ~is_word).any()
    # Shares of about 6,800 words and 1,000 predicted ones: standard deviations of 0.0043, 0.013 and 0.01.
    assert is_predicted.sum() / is_word.sum() == pytest.approx(0.15, abs=0.02)
    assert (masked[is_predicted] == tokenizer.mask_token_id).float().mean() == pytest.approx(0.8, abs=0.05)
    assert (masked[is_predicted] == ids[is_predicted]).float().mean() == pytest.approx(0.1, abs=0.04)


def test_a_tokenizer_without_a_mask_token_is_refused(tokenizer, monkeypatch):
    monkeypatch.setattr(type(tokenizer), "mask_token_id", None, raising=False)
    ids = torch.ones(1, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="a tokenizer with a mask token, got a FDTTokenizer"):
        mask_tokens(ids, ids, tokenizer)
