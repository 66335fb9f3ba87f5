# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""The truth that data bring about their images, in the columns `concepts`, `objects` and `masks`.

`concepts` lists the names of what an image shows. `objects` lists its things, each with a `concept`, a `box` (left,
top, right, bottom in pixels of the image) and, where the data have them, `attributes` and `actions`. `masks` lists an
image for each object, in the same order, that is not 0 where the object is seen.
"""

from collections.abc import Iterator

import numpy as np
from datasets import Dataset
from PIL import Image


def read_concepts(dataset: Dataset) -> list[list[str]]:
    """What every image shows, each concept once.

    Raises:
        ValueError: a cell is no list of names.
    """
    return [_read_names("concepts", row, cell) for row, cell in enumerate(dataset["concepts"])]


def read_objects(dataset: Dataset) -> list[list[dict]]:
    """The things of every image, each with `concept`, `box`, `attributes` and `actions`, empty lists where absent.

    Raises:
        ValueError: a cell is no list of such things.
    """
    objects = []
    for row, cell in enumerate(dataset["objects"]):
        if not isinstance(cell, list) or not all(isinstance(thing, dict) for thing in cell):
            raise ValueError(f"objects of row {row} is {cell!r}, not a list of things with `concept` and `box`")
        objects.append([_read_object(row, thing) for thing in cell])
    return objects


def _read_object(row: int, thing: dict) -> dict:
    concept, box = thing.get("concept"), thing.get("box")
    if not isinstance(concept, str) or not concept.strip():
        raise ValueError(f"objects of row {row} has {thing!r}, whose concept is no name")
    is_box = isinstance(box, list) and len(box) == 4 and all(isinstance(side, int | float) for side in box)
    if not is_box or not (box[0] < box[2] and box[1] < box[3]):
        raise ValueError(f"objects of row {row} has {thing!r}, whose box is not left, top, right, bottom")
    names = {name: _read_names(f"{name} of objects", row, thing.get(name) or []) for name in ("attributes", "actions")}
    return {"concept": concept, "box": box, **names}


def _read_names(column: str, row: int, cell: list[str]) -> list[str]:
    if not isinstance(cell, list) or not all(isinstance(name, str) and name.strip() for name in cell):
        raise ValueError(f"{column} of row {row} is {cell!r}, not a list of names")
    return list(dict.fromkeys(cell))


def read_masks(dataset: Dataset, objects: list[list[dict]]) -> Iterator[list[np.ndarray]]:
    """Of every image one (height, width) boolean mask for each of its objects.

    Raises:
        ValueError: a row has not as many masks as objects.
    """
    for row, cell in enumerate(dataset.select_columns(["masks"])):
        masks = cell["masks"]
        if not isinstance(masks, list) or len(masks) != len(objects[row]):
            raise ValueError(f"masks of row {row} must be one for each of {len(objects[row])} objects, got {masks!r}")
        yield [to_mask(mask) for mask in masks]


def to_mask(image: Image.Image) -> np.ndarray:
    """Where an image is not 0, (height, width) boolean; of transparent images where they are not transparent."""
    band = image.getchannel("A") if image.mode in ("LA", "RGBA") else image.convert("L")
    return np.asarray(band) > 0


def truth_matrix(names: list[list[str]], vocabulary: list[str]) -> np.ndarray:
    """(num_rows, num_names) boolean: which names of the vocabulary each row has."""
    positions = {name: position for position, name in enumerate(vocabulary)}
    matrix = np.zeros((len(names), len(vocabulary)), dtype=bool)
    for row, of_row in enumerate(names):
        matrix[row, [positions[name] for name in of_row if name in positions]] = True
    return matrix


def all_names(names: list[list[str]]) -> set[str]:
    """The names that some row has."""
    return {name for of_row in names for name in of_row}


def collect_names(names: list[list[str]]) -> list[str]:
    """All names that some row has, in alphabetical order; at least one.

    Raises:
        ValueError: there is none.
    """
    vocabulary = sorted(all_names(names))
    if not vocabulary:
        raise ValueError("the data name nothing that their images show")
    return vocabulary
