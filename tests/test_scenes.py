# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Scenes: the same from the same seed wherever they are made; captions and truth agree; splits hold what they say."""

import colorsys
import re
from collections import Counter
from itertools import combinations
from pathlib import Path
from random import Random

import numpy as np
import pytest
from datasets import DatasetDict, load_from_disk
from torch.utils.data import DataLoader

from run_scripts.data.scene_grammar import KINDS, OPPOSITES, falsify, is_true, say
from run_scripts.data.scene_splits import SPLIT_RULES, describe_scene, list_actions, make_world, write_scenes
from run_scripts.data.scene_vocabulary import COLORS, NUMBERS, SIZES, list_subjects, plural
from run_scripts.data.scenes import (
    MIN_RELATION_DISTANCE,
    MIN_VISIBLE_SHARE,
    SceneComposer,
    SceneDataset,
    SplitRule,
    World,
    load_sprites,
)
from run_scripts.data.sprites import Cut, find_colored_region, name_color, recolor
from run_scripts.prepare_scenes import SceneArguments


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "scenes"
    write_scenes(str(folder), image_size=96, num_scenes=40, num_false_captions=25)
    return folder


@pytest.fixture(scope="module")
def splits(folder) -> DatasetDict:
    return load_from_disk(str(folder))


@pytest.fixture(scope="module")
def scenes(folder) -> SceneDataset:
    return SceneDataset(folder, seed=3)


# A reader of captions that knows nothing of how they are made.
CONCEPTS = {subject.concept for subject in list_subjects("twemoji").values()} - {""}
ACTIONS = {subject.action for subject in list_subjects("twemoji").values()} - {None}
NOUNS = {name: concept for concept in CONCEPTS for name in (concept, plural(concept))}
COUNTS = {None: 1, "a": 1, "an": 1, **{word: number for number, word in NUMBERS.items()}}


def one_of(words) -> str:
    return "|".join(sorted(filter(None, words), key=len, reverse=True))


THING = re.compile(
    rf"\b(?:({one_of(COUNTS)}) )?(?:({one_of(SIZES)}) )?(?:({one_of(COLORS)}) )?({one_of(NOUNS)})\b"
    rf"(?: (?:who (?:is|are) )?({one_of(ACTIONS)}))?"
)


def read_things(caption: str) -> list[dict]:
    """What a caption names, in order."""
    return [
        {"concept": NOUNS[noun], "count": COUNTS[count], "words": {size, color} - {None}, "action": action or None}
        for count, size, color, noun, action in (match.groups() for match in THING.finditer(caption))
    ]


STARTS = {"on the left": "left", "on the right": "right", "at the top": "above", "at the bottom": "below"}
WORDS = {"left of": "left", "right of": "right", "above": "above", "over": "above", "below": "below", "under": "below"}


def read_relation(caption: str) -> str | None:
    """How the first thing is to the second; or that it is inside a frame."""
    for start, relation in STARTS.items():
        if caption.startswith(start):
            return relation
    if re.search(r"\bframe\b", caption):
        return "inside"
    match = re.search(rf"\b({one_of(WORDS)})\b", caption)
    return WORDS[match[1]] if match else None


def holds(caption: str, row: dict) -> bool:
    """Whether a caption is true by a row's objects, boxes and frames."""
    named = read_things(caption)
    assert named, caption
    for thing in named:
        objects = [entry for entry in row["objects"] if entry["concept"] == thing["concept"]]
        if len(objects) != thing["count"]:
            return False
        for entry in objects:
            if not thing["words"] <= set(entry["attributes"]) or thing["action"] not in (None, *entry["actions"]):
                return False
    relation = read_relation(caption)
    if relation is None:
        return True
    concepts = [thing["concept"] for thing in named]
    if relation == "inside":
        framed = {entry["first"] for entry in row["relations"] if entry["relation"] == "inside"}
        return concepts[0] in framed and framed.isdisjoint(concepts[1:])
    first, second = (
        next(np.array(entry["box"]) for entry in row["objects"] if entry["concept"] == concept)
        for concept in concepts[:2]
    )
    right, down = ((second[:2] + second[2:]) - (first[:2] + first[2:])) / 2
    offset = {"left": right, "right": -right, "above": down, "below": -down}[relation]
    return offset >= MIN_RELATION_DISTANCE * 96 and offset >= max(abs(right), abs(down))


def test_every_caption_is_true_and_the_first_names_all(splits):
    relations, num_things = Counter(), Counter()
    for row in (row for split in splits.values() for row in split):
        assert row["caption"] == row["captions"][0]
        for caption in row["captions"]:
            assert holds(caption, row), (caption, row["objects"])
            relations[read_relation(caption)] += 1
            num_things[len(read_things(caption)) < len(row["concepts"])] += 1
        assert {thing["concept"] for thing in read_things(row["caption"])} == set(row["concepts"])
        assert {entry["concept"] for entry in row["objects"]} == set(row["concepts"])
    assert set(relations) == {None, *OPPOSITES, "inside"} and min(num_things.values()) > 50


@pytest.mark.parametrize("kind", KINDS)
def test_every_false_caption_is_false_and_every_true_one_true(folder, scenes, kind):
    composer, actions = scenes.composer, list_actions(load_sprites(folder))
    found, changed = 0, Counter()
    for index in range(300):
        scene, random = composer.compose(index)
        statement = scene.draw_statement(random)
        assert is_true(statement, scene.groups, scene.relations)
        negative = falsify(statement, kind, scene.groups, actions, random)
        if negative is None:
            continue
        found += 1
        row = describe_scene(scene, Random(0))
        assert holds(say(statement), row), say(statement)
        assert not holds(say(negative), row), (say(statement), say(negative))
        assert not is_true(negative, scene.groups, scene.relations)
        before, after = read_things(say(statement)), read_things(say(negative))
        assert len(before) == len(after)
        changed.update(name for old, new in zip(before, after, strict=True) for name in old if old[name] != new[name])
    assert found > 20
    expected = {"object": {"concept"}, "attribute": {"words"}, "action": {"action"}, "count": {"count"}}
    if kind in expected:  # nothing else is changed
        assert set(changed) == expected[kind] and changed.total() == found


def test_false_captions_are_written_by_kind(folder):
    false_captions = load_from_disk(str(folder / "false_captions"))
    assert list(false_captions) == list(KINDS)
    for kind, rows in false_captions.items():
        assert len(rows) == 25 and set(rows["kind"]) == {kind}
        assert all(row["caption"] != row["negative_caption"] for row in rows)
        assert {"image", "caption", "negative_caption", "kind"} <= set(rows.column_names)


def test_boxes_hold_what_is_opaque_and_enough_of_it_is_seen(scenes):
    num_hidden = 0
    for index in range(300):
        scene, _ = scenes.composer.compose(index)
        assert 1 <= len(scene.things) <= 4
        assert scene.pixels.shape == (96, 96, 3) and scene.pixels.dtype == np.uint8
        for number, thing in enumerate(scene.things, start=1):
            left, top, right, bottom = thing.box
            assert 0 <= left < right <= 96 and 0 <= top < bottom <= 96
            assert thing.cut.is_opaque.shape == (bottom - top, right - left)
            rows, columns = np.nonzero(scene.owners == number)
            assert rows.min() >= top and rows.max() < bottom and columns.min() >= left and columns.max() < right
            assert len(rows) >= MIN_VISIBLE_SHARE * thing.cut.num_opaque
            num_hidden += len(rows) < thing.cut.num_opaque
    assert num_hidden > 20  # things do lie over each other


def test_a_sprite_is_laid_on_as_its_opacity_says():
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0], pixels[0, 1], pixels[1, 0] = (255, 0, 0, 255), (0, 0, 255, 128), (9, 9, 9, 0)
    canvas = np.full((4, 4, 3), 200, np.uint8)
    Cut.scale(pixels, 2).lay_on(canvas, left=1, top=2)
    assert canvas[2, 1].tolist() == [255, 0, 0]
    assert np.abs(canvas[2, 2].astype(int) - [100, 100, 228]).max() <= 1
    canvas[2, 1:3] = 200
    assert (canvas == 200).all()  # what is transparent changes nothing


@pytest.mark.parametrize("color", COLORS)
def test_recoloured_drawings_look_so(folder, color):
    palette = {name: np.array(colorsys.hsv_to_rgb(hue / 360, *rest)) * 255 for name, (hue, *rest) in COLORS.items()}
    sprites = [sprite for sprite in load_sprites(folder) if sprite.is_recolorable and sprite.color != color]
    assert len(sprites) > 50
    for sprite in sprites:
        pixels = recolor(sprite.pixels, *find_colored_region(sprite.pixels), color)
        is_changed = (pixels != sprite.pixels).any(axis=-1)
        mean = pixels[is_changed][:, :3].mean(axis=0)
        nearest = min(palette, key=lambda name: np.abs(palette[name] - mean).sum())
        assert nearest == color, (sprite.subject, sprite.style, mean)
        is_opaque = sprite.pixels[..., 3] >= 128
        assert not is_changed[~is_opaque].any() and is_changed[is_opaque].mean() >= 0.4


def test_colours_between_those_with_a_name_have_none():
    assert name_color(355, 0.9, 0.9) == name_color(5, 0.9, 0.9) == "red"
    assert name_color(25, 0.9, 0.9) is None  # orange
    assert name_color(5, 0.2, 0.9) is None  # skin


def test_the_same_index_gives_the_same_pair_in_any_order_and_process(folder):
    def read(num_workers: int, batches: list[list[int]]) -> list:
        loader = DataLoader(
            SceneDataset(folder, seed=3), batch_sampler=batches, num_workers=num_workers, collate_fn=lambda rows: rows
        )
        return [[(row["caption"], row["image"].tobytes()) for row in rows] for rows in loader]

    batches = [[4 * step + number for number in range(4)] for step in range(6)]
    expected = read(0, batches)
    assert len({pair for pairs in expected for pair in pairs}) == 24
    assert read(1, batches) == expected
    assert read(2, batches) == expected
    assert read(0, batches[:2:-1]) == expected[:2:-1]  # nothing that came before matters
    other = SceneDataset(folder, seed=4)[0]
    assert other["image"].tobytes() != expected[0][0][1]


@pytest.mark.parametrize("name", ["train", *SPLIT_RULES])
def test_splits_hold_what_they_say(folder, name):
    world = World.load(folder)
    pairs = {split: {frozenset(pair) for pair in getattr(world, f"{split}_pairs")} for split in ("validation", "test")}
    assert pairs["validation"].isdisjoint(pairs["test"])
    pairings = {tuple(pairing) for pairing in world.unseen_pairings}
    drawings = {tuple(drawing) for drawing in world.unseen_drawings}
    rule = SPLIT_RULES.get(name, SplitRule("train"))
    composer = SceneComposer(world, load_sprites(folder), rule, seed=5)
    num_unseen_pairings = 0
    for index in range(300):
        scene, _ = composer.compose(index)
        together = {frozenset(pair) for pair in combinations([group.concept for group in scene.groups], 2)}
        for split, of_split in pairs.items():
            assert bool(together & of_split) == (split == rule.combination)
        shown = {
            (group.concept, value)
            for group in scene.groups
            for value in (group.color, group.action)
            if value is not None
        }
        assert bool(shown & pairings) == ("pairing" in scene.unseen)
        num_unseen_pairings += "pairing" in scene.unseen
        for group in scene.groups:
            assert ((scene.style, group.concept, group.action) in drawings) == (name == "test")
        assert ("combination" in scene.unseen) == (name != "train")
        assert ("drawing" in scene.unseen) == (name == "test")
    assert abs(num_unseen_pairings - 300 * rule.unseen_pairing_share) <= 30


def test_all_styles_split_by_style(folder):
    # Drawings of the two styles stand for those of nine.
    styles = {"train": ["twemoji"], "validation": ["openmoji"], "test": ["openmoji"]}
    world = make_world(load_sprites(folder), styles, image_size=64, seed=0)
    assert world.unseen_drawings == []
    composer = SceneComposer(world, load_sprites(folder), SPLIT_RULES["test"], seed=0)
    scene, _ = composer.compose(0)
    assert scene.style == "openmoji" and scene.unseen[:2] == ["style", "combination"]
    assert scene.pixels.shape == (64, 64, 3)


def test_masks_are_what_is_seen(splits):
    for row in splits["test"].select(range(10)):
        masks = [np.asarray(mask) for mask in row["masks"]]
        assert len(masks) == len(row["objects"]) and sum(mask.astype(int) for mask in masks).max() == 1
        for mask, entry in zip(masks, row["objects"], strict=True):
            assert mask.shape == (96, 96) and mask.dtype == bool
            left, top, right, bottom = map(int, entry["box"])
            assert mask[top:bottom, left:right].sum() == mask.sum() > 0


def test_bad_arguments_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="output_dir must be a new or an empty folder, got"):
        write_scenes(str(folder))
    with pytest.raises(ValueError, match="image_size"):
        write_scenes(str(tmp_path / "new"), image_size=20)
    with pytest.raises(ValueError, match="num_scenes"):
        SceneArguments(str(tmp_path / "new"), num_scenes=0)


def test_what_the_licences_ask_for_is_kept(folder, splits):
    assert "CC-BY-SA-4.0" in (folder / "ATTRIBUTION.md").read_text()
    assert splits["test"].info.license == "CC-BY-4.0, CC-BY-SA-4.0"
    assert (folder / "contact_sheet.png").stat().st_size > 0
    card = (folder / "README.md").read_text()
    assert "| `test` | 40 |" in card
    assert "drawn like those of `test_combinations`" in " ".join(card.split())
    # Of two styles none is left for validation.
    assert "never together in training, in the styles and drawings of training" in card
