# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""The emoji dataset: rendering, splits, and, slow, the whole of it."""

import io
from collections import Counter

import pytest
from datasets import load_from_disk
from PIL import Image

from run_scripts.data import drawings, emoji
from run_scripts.prepare_emoji_data import EmojiDataArguments, prepare_emoji_data


def png(color: str, size: int = 72) -> bytes:
    file = io.BytesIO()
    Image.new("RGBA", (size, size), color).save(file, "PNG")
    return file.getvalue()


def test_concept_id_has_one_spelling():
    assert drawings.concept_id("0023-fe0f-20e3") == "23-20E3"
    assert drawings.concept_id("1F468-200D-1F33E") == "1F468-200D-1F33E"


def test_words():
    assert drawings.words(":man_farmer:") == "man farmer"
    assert drawings.words("left-facing_fist") == "left facing fist"


@pytest.mark.parametrize("size", [72, 160])
def test_pictures_become_rgb_on_white(size):
    image = emoji.render_on_white(png("#ff000080", size))
    assert image.mode == "RGB" and image.size == (72, 72)
    assert image.getpixel((36, 36)) == (255, 127, 127)
    assert emoji.render_on_white(png("#00000000", size)).getpixel((0, 0)) == (255, 255, 255)


def test_svg_is_drawn_without_its_margins_and_centred():
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 2 2"><rect width="1" height="2" fill="#00f"/></svg>'
    image = emoji.render_on_white(svg)
    assert image.size == (72, 72)
    assert [image.getpixel((x, 36)) for x in (10, 25, 46, 60)] == [(255,) * 3, (0, 0, 255), (0, 0, 255), (255,) * 3]


def test_of_concepts_with_one_drawing_the_first_is_kept():
    def record(concept, style, color):
        captions = [f"name {concept}", "alias"]
        drawing = png(color)
        return {
            "concept": concept,
            "style": style,
            "category": "Objects",
            "captions": captions,
            "drawing": drawing,
        }

    records = [record("A", "x", "red"), record("B", "x", "red"), record("B", "y", "red"), record("C", "x", "blue")]
    dataset = emoji.build_dataset(records)
    kept = list(zip(dataset["concept"], dataset["style"], strict=True))
    assert kept == [("A", "x"), ("B", "y"), ("C", "x")]
    assert dataset["caption"][:] == ["name A", "name B", "name C"]
    assert dataset.features["category"].int2str(dataset["category"][0]) == "Objects"


def test_two_styles_split_holds_out_one_drawing_of_a_fifth():
    concepts = [f"C{number}" for number in range(50) for _ in range(2)] + ["alone"]
    styles = ["twemoji", "openmoji"] * 50 + ["openmoji"]
    split = emoji.split_two_styles(concepts, styles, seed=0)
    assert len(split["test"]) == 10 and len(split["train"]) == 90
    assert not set(split["test"]) & set(split["train"])
    tested, trained = ({concepts[row] for row in split[name]} for name in ("test", "train"))
    assert len(tested) == 10 and trained == {f"C{number}" for number in range(50)}  # "alone" has one drawing
    assert {styles[row] for row in split["test"]} == {"twemoji", "openmoji"}
    assert split == emoji.split_two_styles(concepts, styles, seed=0)
    assert split != emoji.split_two_styles(concepts, styles, seed=1)


def test_families_differ_by_gender_or_direction_only():
    names = {
        "1F9D1-200D-1F33E": "farmer",
        "1F468-200D-1F33E": "man farmer",
        "1F469-200D-1F33E": "woman farmer",
        "1F9DC": "merperson",
        "1F9DC-200D-2640": "mermaid",
        "2B05": "left arrow",
        "27A1": "right arrow",
        "1F34E": "red apple",
        "1F34F": "green apple",
    }
    families = {frozenset(family) for family in emoji.concept_families(names)}
    assert families == {
        frozenset({"1F9D1-200D-1F33E", "1F468-200D-1F33E", "1F469-200D-1F33E"}),
        frozenset({"1F9DC", "1F9DC-200D-2640"}),
        frozenset({"2B05", "27A1"}),
        frozenset({"1F34E"}),
        frozenset({"1F34F"}),
    }


def test_all_styles_split_keeps_styles_and_held_out_concepts_apart():
    numbers = range(100)
    concepts = [f"{number:X}" for number in numbers for _ in drawings.ALL_STYLES]
    styles = list(drawings.ALL_STYLES) * len(numbers)
    split = emoji.split_all_styles(concepts, styles, [f"name {concept}" for concept in concepts], seed=0)
    seen = {name: {concepts[row] for row in rows} for name, rows in split.items()}
    used = {name: {styles[row] for row in rows} for name, rows in split.items()}
    assert len(seen["test_held_out"]) == 15 and len(seen["train"]) == 85
    assert not seen["test_held_out"] & (seen["train"] | seen["validation"] | seen["test"])
    assert seen["test"] == seen["validation"] == seen["train"]
    assert used["test"] == used["test_held_out"] == drawings.TEST_STYLES
    assert used["validation"] == drawings.VALIDATION_STYLES
    assert not used["train"] & (drawings.TEST_STYLES | drawings.VALIDATION_STYLES)


def test_icons_are_matched_by_name_only_when_it_is_certain():
    entries = {
        "1F34E": {"label": "red apple", "hexcode": "1F34E"},
        "1F34F": {"label": "green apple", "hexcode": "1F34F"},
    }
    known = {
        "icons": {"red-apple": {}, "green-apple": {}},
        "aliases": {"apple": {"parent": "red-apple"}, "tart": {"parent": "green-apple", "hFlip": True}},
    }
    characters = {"known": {"1f34e": "red-apple", "1f34f": "green-apple"}}
    index = drawings.index_names(entries, {"1F34F": "GREEN APPLE FRUIT"}, {"known": known}, characters)
    assert index["apple"] == {"1F34E"} and index["greenapplefruit"] == {"1F34F"} and "tart" not in index

    icon = {"body": "<g/>"}
    nameless = {"icons": {"Apple": icon, "greenapplefruit": icon, "pear": icon}, "width": 8, "height": 8}
    matched = drawings.match_icons(nameless, {}, index, entries)
    assert set(matched) == {"1F34E", "1F34F"} and b'viewBox="0 0 8 8"' in matched["1F34E"]

    index["greenapplefruit"].add("1F34E")
    assert set(drawings.match_icons(nameless, {}, index, entries)) == {"1F34E"}


def test_missing_npm_and_existing_folder_are_refused(tmp_path, monkeypatch):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="output_dir must be a new or an empty folder, got"):
        prepare_emoji_data(EmojiDataArguments(output_dir=str(tmp_path)))
    monkeypatch.setattr(drawings.shutil, "which", lambda name: None)
    arguments = EmojiDataArguments(output_dir=str(tmp_path / "new"), styles="all")
    with pytest.raises(ValueError, match="npm"):
        prepare_emoji_data(arguments)


@pytest.mark.slow
def test_two_styles_whole(tmp_path):
    output_dir = tmp_path / "emoji"
    prepare_emoji_data(EmojiDataArguments(output_dir=str(output_dir)))
    dataset = load_from_disk(str(output_dir))
    train, test = dataset["train"], dataset["test"]
    names = dict(zip(train["concept"], train["caption"], strict=True))
    assert len(names) == len(set(names.values())) > 1500  # every concept has its own name
    assert len(test) == len(set(test["concept"])) == len(names) // 5
    assert len(train) + len(test) == 2 * len(names)
    assert set(test["concept"]) <= set(names)
    # No drawing is in the set twice, so none of the test is in training.
    drawings = Counter(image.tobytes() for split in (train, test) for image in split["image"])
    repeated = sum(count - 1 for count in drawings.values())
    assert repeated == 0
    assert "CC-BY-SA-4.0" in (output_dir / "ATTRIBUTION.md").read_text()
    assert train.info.license == "CC-BY-4.0, CC-BY-SA-4.0"
