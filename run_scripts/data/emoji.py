# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""The same concepts drawn by several hands: rendered, named, and split by concept and by style."""

import logging
import os
import random
import re
from collections import defaultdict
from typing import Literal

import networkx
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from run_scripts.data.drawings import (
    CATEGORIES,
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


logger = logging.getLogger(__name__)

IMAGE_SIZE = 72  # the size in pixels of Twemoji's own PNG files
WHAT_WAS_MADE = f"Drawings, rendered at {IMAGE_SIZE} x {IMAGE_SIZE} pixels on white"


def render_on_white(drawing: bytes) -> Image.Image:
    """A drawing as RGB on white, centred and as large as IMAGE_SIZE allows."""
    image = render(drawing, IMAGE_SIZE)
    white = Image.new("RGBA", (IMAGE_SIZE, IMAGE_SIZE), "white")
    white.alpha_composite(image, ((IMAGE_SIZE - image.width) // 2, (IMAGE_SIZE - image.height) // 2))
    return white.convert("RGB")


def build_dataset(records: list[dict]) -> Dataset:
    """Render the records; of several concepts with the very same drawing, keep the first, which is the general one."""
    features = Features(
        {
            "concept": Value("string"),
            "style": Value("string"),
            "category": ClassLabel(names=CATEGORIES),
            "captions": List(Value("string")),
            "drawing": Value("binary"),
        }
    )
    new_columns = {"image": ImageFeature(), "caption": Value("string")}
    dataset = Dataset.from_list(records, features=features).map(
        lambda record: {"image": render_on_white(record["drawing"]), "caption": record["captions"][0]},
        remove_columns=["drawing"],
        features=Features({k: v for k, v in features.items() if k != "drawing"} | new_columns),
        num_proc=os.cpu_count(),
        desc="Rendering",
    )
    pixels = dataset.cast_column("image", ImageFeature(decode=False))["image"]
    first = {}
    for row, (image, style) in enumerate(zip(pixels, dataset["style"], strict=True)):
        first.setdefault((style, image["bytes"]), row)
    return dataset.select(sorted(first.values()))


def split_two_styles(concepts: list[str], styles: list[str], seed: int) -> dict[str, list[int]]:
    """Rows of each split; concepts without both drawings are left out.

    Args:
        concepts: the concept of each row.
        styles: the style of each row.
        seed: draws the fifth of the concepts, and for each of them the style that is held out.
    """
    drawn = defaultdict(set)
    for concept, style in zip(concepts, styles, strict=True):
        drawn[concept].add(style)
    complete = [concept for concept, found in drawn.items() if found == set(TWO_STYLES)]
    generator = random.Random(seed)
    held_out = {
        concept: generator.choice(list(TWO_STYLES)) for concept in generator.sample(complete, len(complete) // 5)
    }
    rows = {"train": [], "test": []}
    for row, (concept, style) in enumerate(zip(concepts, styles, strict=True)):
        if drawn[concept] == set(TWO_STYLES):
            rows["test" if held_out.get(concept) == style else "train"].append(row)
    return rows


def concept_families(names: dict[str, str]) -> list[list[str]]:
    """Groups of concepts that differ by gender or direction only.

    Args:
        names: the name of each concept.
    """
    gender = {"2640", "2642", "200D", "27A1"}
    person = {"1F468": "1F9D1", "1F469": "1F9D1"}
    graph = networkx.Graph()
    for concept, name in names.items():
        codes = "-".join(person.get(code, code) for code in concept.split("-") if code not in gender)
        without = r"\b(men|man|women|woman|persons?|people|boys?|girls?|facing|left|right|up|down|male|female)\b|\W"
        graph.add_edge(concept, ("codes", codes))
        graph.add_edge(concept, ("name", re.sub(without, "", name)))
    groups = networkx.connected_components(graph)
    return sorted(sorted(node for node in group if isinstance(node, str)) for group in groups)


def split_all_styles(concepts: list[str], styles: list[str], names: list[str], seed: int) -> dict[str, list[int]]:
    """Rows of each split: by style for concepts that train, `test_held_out` for unseen concepts in an unseen style.

    Args:
        concepts, styles, names: concept, style and name of each row.
        seed: draws the families that are held out, until they hold 15% of the concepts.
    """
    families = concept_families(dict(zip(concepts, names, strict=True)))
    random.Random(seed).shuffle(families)
    held_out = set()
    for family in families:
        if len(held_out) + len(family) <= 0.15 * len(set(concepts)):
            held_out.update(family)
    tested = TEST_STYLES | VALIDATION_STYLES
    trained = {c for c, style in zip(concepts, styles, strict=True) if style not in tested} - held_out
    rows = {"train": [], "validation": [], "test": [], "test_held_out": []}
    for row, (concept, style) in enumerate(zip(concepts, styles, strict=True)):
        if concept in held_out:
            if style in TEST_STYLES:
                rows["test_held_out"].append(row)
        elif concept in trained:
            split = "test" if style in TEST_STYLES else "validation" if style in VALIDATION_STYLES else "train"
            rows[split].append(row)
    return rows


def write_emoji_data(output_dir: str, kind: Literal["two", "all"], seed: int) -> DatasetDict:
    """Build the dataset, save it with its attribution in `output_dir`, and return it.

    Args:
        output_dir: folder to save in; it must not exist yet.
        kind: which styles.
        seed: draws which concepts and which drawings are held out.
    """
    with new_folder(output_dir) as folder:
        sources = list_sources(kind)
        dataset = build_dataset(load_drawings(kind))
        concepts, styles = dataset["concept"][:], dataset["style"][:]
        if kind == "two":
            splits = split_two_styles(concepts, styles, seed)
        else:
            splits = split_all_styles(concepts, styles, dataset["caption"][:], seed)

        dataset.info.description = f"{len(sources)} styles of emoji with their names; see ATTRIBUTION.md."
        dataset.info.license = join_licenses(sources)
        dataset_dict = DatasetDict({split: dataset.select(rows) for split, rows in splits.items()})
        dataset_dict.save_to_disk(str(folder))
        (folder / "ATTRIBUTION.md").write_text(attribution(sources, WHAT_WAS_MADE))
    for split, rows in dataset_dict.items():
        logger.info("%s: %d drawings of %d concepts", split, len(rows), len(set(rows["concept"])))
    return dataset_dict
