# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""A world of scenes, its splits to evaluate on and its false captions: drawn, described and written."""

import io
import random
from itertools import combinations, count
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image, ImageDraw, ImageFont

from run_scripts.data.drawings import (
    TEST_STYLES,
    TWO_STYLES,
    VALIDATION_STYLES,
    attribution,
    join_licenses,
    list_sources,
    load_drawings,
    render,
)
from run_scripts.data.files import new_folder
from run_scripts.data.scene_grammar import KINDS, falsify, say
from run_scripts.data.scene_vocabulary import COLORS, list_subjects
from run_scripts.data.scenes import (
    DRAWINGS_NAME,
    FALSE_CAPTIONS_NAME,
    MIN_VISIBLE_SHARE,
    Scene,
    SceneComposer,
    SplitRule,
    World,
)
from run_scripts.data.sprites import Sprite, make_sprite


CARD = Path(__file__).with_name("scene_card.md")
NUM_CAPTIONS = 4
SPRITE_SIZE = 96  # in pixels: enough for the biggest thing in an image of twice that side
SHEET_ROWS, SHEET_COLUMNS = 4, 6

SPLIT_RULES = {
    # What is drawn unseen is for test alone: with two styles validation shows what training shows, in other scenes.
    "validation": SplitRule("validation", "validation"),
    "test": SplitRule("test", "test", unseen_pairing_share=0.3, is_drawn_unseen=True),
    "test_combinations": SplitRule("train", "test"),
    "test_pairings": SplitRule("train", "test", unseen_pairing_share=1.0),
}
SPLIT_TEXTS = {
    "validation": "pairs of concepts never together in training, {validation_styles}",
    "test": "the same, in drawings never seen in training, three in ten with a colour or an action never seen with it",
    "test_combinations": "the same, in drawings that training shows",
    "test_pairings": "likewise, all with a colour or an action that training never shows with that concept",
}

IMAGE_FEATURES = Features(
    {
        "image": ImageFeature(),
        "caption": Value("string"),
        "captions": List(Value("string")),
        "concepts": List(Value("string")),
        "objects": List(
            {
                "concept": Value("string"),
                "attributes": List(Value("string")),
                "actions": List(Value("string")),
                "box": List(Value("float32"), length=4),
            }
        ),
        "masks": List(ImageFeature()),
        "relations": List({"first": Value("string"), "relation": Value("string"), "second": Value("string")}),
        "style": Value("string"),
        "unseen": List(Value("string")),
    }
)
FALSE_CAPTION_FEATURES = Features(
    {
        "image": ImageFeature(),
        "caption": Value("string"),
        "negative_caption": Value("string"),
        "kind": Value("string"),
        "style": Value("string"),
    }
)


def make_sprites(records: list[dict], styles: dict[str, list[str]]) -> list[Sprite]:
    """Every drawing that shows something of the vocabulary.

    Args:
        records: what `load_drawings` gives.
        styles: the styles of each split; what training or test cannot show at all is left out.
    """
    subjects = {style: list_subjects(style) for of_split in styles.values() for style in of_split}
    found = [
        (record, subject)
        for record in records
        if (subject := subjects[record["style"]].get(record["concept"])) is not None
    ]
    drawn = {
        split: {subject.concept for record, subject in found if record["style"] in styles[split]} for split in styles
    }
    return [
        make_sprite(render(record["drawing"], SPRITE_SIZE), subject, record["style"])
        for record, subject in found
        if subject.concept in drawn["train"] & drawn["test"]
    ]


def make_world(sprites: list[Sprite], styles: dict[str, list[str]], image_size: int, seed: int) -> World:
    """Draw what is held out.

    Of the pairs of concepts a tenth are for validation alone and a fifth for test alone. Half of the concepts that can
    take any colour lose one of them in training, and half of what people do is done in training by men or by women
    only. Where test has no styles of its own, training shows four tenths of all that is drawn in one style only.
    """
    generator = random.Random(seed)
    named = [sprite for sprite in sprites if sprite.subject.concept]
    concepts = list(dict.fromkeys(sprite.subject.concept for sprite in named))
    pairs = [list(pair) for pair in combinations(concepts, 2)]
    generator.shuffle(pairs)
    num_validation, num_test = len(pairs) // 10, len(pairs) // 5

    pairings = []
    for concept in concepts:
        drawings = [sprite for sprite in named if sprite.subject.concept == concept]
        own = {sprite.color for sprite in drawings}
        others = [color for color in COLORS if color not in own]
        if any(sprite.is_recolorable for sprite in drawings) and others and generator.random() < 0.5:
            pairings.append([concept, generator.choice(others)])
    by_people = {}
    for sprite in named:
        if sprite.subject.category == "people":
            by_people.setdefault(sprite.subject.action, set()).add(sprite.subject.concept)
    shared = sorted(action for action, people in by_people.items() if len(people) > 1)
    for action in generator.sample(shared, len(shared) // 2):
        pairings.append([generator.choice(sorted(by_people[action])), action])

    drawings = []
    if set(styles["test"]) <= set(styles["train"]):
        shown = list(dict.fromkeys((s.subject.concept, s.subject.action) for s in named))
        held_out = generator.sample(shown, 2 * (len(shown) // 5))
        drawings = [[styles["train"][i % len(styles["train"])], *subject] for i, subject in enumerate(held_out)]
    return World(
        seed=seed,
        image_size=image_size,
        styles=styles,
        validation_pairs=pairs[:num_validation],
        test_pairs=pairs[num_validation : num_validation + num_test],
        unseen_pairings=pairings,
        unseen_drawings=drawings,
    )


def split_styles(styles: Literal["two", "all", "permissive"]) -> dict[str, list[str]]:
    """The styles of each split. Of two styles, both train; what is unseen is some drawings of either."""
    if styles == "two":
        return {split: list(TWO_STYLES) for split in ("train", "validation", "test")}
    return {
        "train": [style for style in list_sources(styles) if style not in VALIDATION_STYLES | TEST_STYLES],
        "validation": [style for style in list_sources(styles) if style in VALIDATION_STYLES],
        "test": [style for style in list_sources(styles) if style in TEST_STYLES],
    }


def png(image: np.ndarray | Image.Image) -> dict[str, Any]:
    """An image as `datasets` stores it."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def describe_scene(scene: Scene, generator: random.Random) -> dict[str, Any]:
    """The row of a scene: `caption` is one that names all groups, the first of `captions`."""
    full = scene.draw_statement(generator)
    while len(full.groups) < len(scene.groups):
        full = scene.draw_statement(generator)
    captions = [say(full)]
    for _ in range(4 * NUM_CAPTIONS):
        captions.append(say(scene.draw_statement(generator)))
    captions = list(dict.fromkeys(captions))[:NUM_CAPTIONS]
    groups = [scene.groups[thing.group] for thing in scene.things]
    names = [group.concept for group in scene.groups]
    return {
        "image": png(scene.pixels),
        "caption": captions[0],
        "captions": captions,
        "concepts": names,
        "objects": [
            {
                "concept": group.concept,
                "attributes": [word for word in (group.size, group.color) if word is not None],
                "actions": [] if group.action is None else [group.action],
                "box": thing.box,
            }
            for group, thing in zip(groups, scene.things, strict=True)
        ],
        "masks": [png(scene.owners == number) for number in range(1, len(groups) + 1)],
        "relations": [
            {"first": names[first], "relation": relation, "second": "frame" if first == second else names[second]}
            for first, relation, second in scene.relations
        ],
        "style": scene.style,
        "unseen": scene.unseen,
    }


def has_own_style(world: World, split: str) -> bool:
    """Whether the drawings of a split are in styles that training does not show."""
    return set(world.styles[split]).isdisjoint(world.styles["train"])


def name_false_caption_split(world: World) -> str:
    """The split like which the scenes of false captions are drawn.

    A drawing never seen is hard to name where training shows two styles only; what is asked here is another thing.
    """
    return "test" if has_own_style(world, "test") else "test_combinations"


def list_actions(sprites: list[Sprite]) -> dict[str, list[str]]:
    """Of every concept what its drawings do."""
    actions: dict[str, list[str]] = {}
    for sprite in sprites:
        if sprite.subject.concept:
            done = actions.setdefault(sprite.subject.concept, [])
            if sprite.subject.action is not None and sprite.subject.action not in done:
                done.append(sprite.subject.action)
    return actions


def make_false_captions(composer: SceneComposer, kind: str, num_rows: int, actions: dict[str, list[str]]) -> Dataset:
    """Scenes with a true and a false caption that differ in one thing of that kind."""
    rows = []
    for index in count():
        if len(rows) == num_rows:
            break
        scene, generator = composer.compose(index)
        for _ in range(4):
            statement = scene.draw_statement(generator)
            negative = falsify(statement, kind, scene.groups, actions, generator)
            if negative is not None:
                captions = {"caption": say(statement), "negative_caption": say(negative)}
                rows.append({"image": png(scene.pixels), **captions, "kind": kind, "style": scene.style})
                break
    return Dataset.from_list(rows, features=FALSE_CAPTION_FEATURES)


def save_drawings(sprites: list[Sprite], folder: Path, license: str) -> None:
    """Write the sprites as a data set."""
    features = Features(
        {
            "image": ImageFeature(mode="RGBA"),
            "style": Value("string"),
            "concept": Value("string"),
            "category": Value("string"),
            "action": Value("string"),
            "color": Value("string"),
            "is_recolorable": Value("bool"),
        }
    )
    rows = [
        {
            "image": png(sprite.pixels),
            "style": sprite.style,
            "concept": sprite.subject.concept,
            "category": sprite.subject.category,
            "action": sprite.subject.action,
            "color": sprite.color,
            "is_recolorable": sprite.is_recolorable,
        }
        for sprite in sprites
    ]
    dataset = Dataset.from_list(rows, features=features)
    dataset.info.license = license
    dataset.save_to_disk(str(folder / DRAWINGS_NAME))


def draw_contact_sheet(dataset: Dataset, num_rows: int, num_columns: int) -> Image.Image:
    """The first scenes of a split with their captions and boxes."""
    scale, gap, line = 2, 12, 15
    side = scale * dataset[0]["image"].width
    font = ImageFont.load_default(size=12)
    sheet = Image.new("RGB", (num_columns * (side + gap) + gap, num_rows * (side + 4 * line + gap) + gap), "white")
    drawing = ImageDraw.Draw(sheet)
    for number, row in enumerate(dataset.select(range(min(num_rows * num_columns, len(dataset))))):
        left = gap + number % num_columns * (side + gap)
        top = gap + number // num_columns * (side + 4 * line + gap)
        sheet.paste(row["image"].resize((side, side), Image.Resampling.LANCZOS), (left, top))
        for thing, color in zip(row["objects"], ("#d62728", "#1f77b4", "#2ca02c", "#9467bd"), strict=False):
            box = [scale * value for value in thing["box"]]
            drawing.rectangle((left + box[0], top + box[1], left + box[2] - 1, top + box[3] - 1), outline=color)
        lines = [""]
        for word in row["caption"].split():
            longer = f"{lines[-1]} {word}".strip()
            if font.getlength(longer) > side:
                lines.append(word)
            else:
                lines[-1] = longer
        drawing.multiline_text((left, top + side + 2), "\n".join(lines[:4]), fill="black", font=font, spacing=2)
    return sheet


def data_card(
    world: World, sprites: list[Sprite], splits: DatasetDict, false_captions: DatasetDict, license: str
) -> str:
    """What is in the folder, for its reader."""
    concepts = sorted({sprite.subject.concept for sprite in sprites} - {""})
    actions = sorted({sprite.subject.action for sprite in sprites} - {None})
    is_own = has_own_style(world, "validation")
    styles = "in a style of its own" if is_own else "in the styles and drawings of training: no other is left"
    texts = {**SPLIT_TEXTS, "validation": SPLIT_TEXTS["validation"].format(validation_styles=styles)}
    return CARD.read_text(encoding="utf-8").format(
        image_size=world.image_size,
        license=license,
        splits="\n".join(f"| `{name}` | {len(rows)} | {texts[name]} |" for name, rows in splits.items()),
        styles="; ".join(f"{split}: {', '.join(names)}" for split, names in world.styles.items()),
        num_validation_pairs=len(world.validation_pairs),
        num_test_pairs=len(world.test_pairs),
        num_pairings=len(world.unseen_pairings),
        num_drawings=len(world.unseen_drawings),
        false_captions=", ".join(f"`{kind}` ({len(rows)})" for kind, rows in false_captions.items()),
        false_caption_split=name_false_caption_split(world),
        visible=f"{MIN_VISIBLE_SHARE:.0%}",
        num_concepts=len(concepts),
        concepts=", ".join(concepts),
        attributes=", ".join([*COLORS, "big", "small"]),
        num_actions=len(actions),
        actions=", ".join(actions),
    )


def write_scenes(
    output_dir: str,
    kind: Literal["two", "all", "permissive"] = "two",
    image_size: int = 64,
    num_scenes: int = 1000,
    num_false_captions: int = 400,
    seed: int = 0,
) -> DatasetDict:
    """Build the world and its splits, save them with their attribution, and return the splits.

    Args:
        output_dir: folder to save in; it must not exist yet.
        kind: which styles.
        image_size: side of the images in pixels.
        num_scenes: of each split.
        num_false_captions: of each kind.
        seed: draws what is held out, and the scenes.

    Raises:
        ValueError: the folder exists, or the images would be too small or larger than the drawings allow.
    """
    if not 48 <= image_size <= 2 * SPRITE_SIZE:
        raise ValueError(f"image_size must be from 48 to {2 * SPRITE_SIZE}, got {image_size}")
    with new_folder(output_dir) as folder:
        sources, styles = list_sources(kind), split_styles(kind)
        license = join_licenses(sources)
        sprites = make_sprites(load_drawings(kind), styles)
        world = make_world(sprites, styles, image_size, seed)

        splits = {}
        for number, (name, rule) in enumerate(SPLIT_RULES.items(), start=1):
            composer = SceneComposer(world, sprites, rule, _split_seed(seed, number))
            rows = [describe_scene(*composer.compose(index)) for index in range(num_scenes)]
            splits[name] = Dataset.from_list(rows, features=IMAGE_FEATURES)
        actions = list_actions(sprites)
        rule = SPLIT_RULES[name_false_caption_split(world)]
        composer = SceneComposer(world, sprites, rule, _split_seed(seed, len(SPLIT_RULES) + 1))
        false_captions = DatasetDict(
            {kind: make_false_captions(composer, kind, num_false_captions, actions) for kind in KINDS}
        )
        dataset_dict = DatasetDict(splits)
        for dataset in (*dataset_dict.values(), *false_captions.values()):
            dataset.info.description = (
                f"Scenes of drawings in {len(sources)} styles; see README.md and ATTRIBUTION.md."
            )
            dataset.info.license = license
        dataset_dict.save_to_disk(str(folder))
        false_captions.save_to_disk(str(folder / FALSE_CAPTIONS_NAME))
        save_drawings(sprites, folder, license)
        world.save(folder)
        what = f"Drawings, at most {SPRITE_SIZE} pixels wide and high, and images composed of them, some recoloured"
        (folder / "README.md").write_text(data_card(world, sprites, dataset_dict, false_captions, license))
        (folder / "ATTRIBUTION.md").write_text(attribution(sources, what))
        draw_contact_sheet(dataset_dict["test"], SHEET_ROWS, SHEET_COLUMNS).save(folder / "contact_sheet.png")
    return dataset_dict


def _split_seed(seed: int, number: int) -> int:
    # Scenes of training have the small seeds.
    return 2**40 * number + seed
