# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Scenes: several drawings in one image, made one by one from their numbers, with captions and with the truth."""

import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import load_from_disk
from PIL import Image
from torch.utils.data import Dataset

from run_scripts.data.scene_backgrounds import draw_backgrounds
from run_scripts.data.scene_grammar import Group, Statement, draw_statement, say
from run_scripts.data.scene_vocabulary import COLORS, SIZES, Subject
from run_scripts.data.sprites import Cut, Sprite


if TYPE_CHECKING:
    from run_scripts.data.pairs import DataCounts


WORLD_NAME = "world.json"
DRAWINGS_NAME = "drawings"
FALSE_CAPTIONS_NAME = "false_captions"
# Of a thing's opaque pixels this share can be seen, whatever lies over it.
MIN_VISIBLE_SHARE = 0.7
# A thing is left of another when its centre is, by this share of the image's side, and by more than it is above it.
MIN_RELATION_DISTANCE = 0.2

_RECOLORED_SHARE = 0.25  # of the drawings that can be
_MAX_OVERLAP = 0.12  # of the smaller of two boxes, where there is room
_FRAME_COLOR = (124, 82, 48)
_FRAME_MAT = (250, 246, 236)


@dataclass
class World:
    """What belongs to which split; how scenes are drawn from it is [`SceneComposer`]'s.

    Args:
        seed: of all that was drawn when the world was made.
        image_size: side of the images in pixels.
        styles: the styles of each of "train", "validation" and "test".
        validation_pairs, test_pairs: pairs of concepts that are together in scenes of that split only.
        unseen_pairings: (concept, colour) and (concept, action) that are in no scene of training.
        unseen_drawings: (style, concept, action) that are in no scene of training although the style is.
    """

    seed: int
    image_size: int
    styles: dict[str, list[str]]
    validation_pairs: list[list[str]]
    test_pairs: list[list[str]]
    unseen_pairings: list[list[str]]
    unseen_drawings: list[list[str | None]]

    def save(self, folder: Path) -> None:
        (folder / WORLD_NAME).write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "World":
        return cls(**json.loads((folder / WORLD_NAME).read_text()))


@dataclass(frozen=True)
class SplitRule:
    """Which scenes a split holds.

    Args:
        styles: of which part of the world.
        combination: "train": no pair of concepts of validation or test; otherwise at least one pair of that split
            and none of the other.
        unseen_pairing_share: of the scenes that show a pairing never seen in training.
        is_drawn_unseen: whether all is shown by drawings that are not in training; else by those that are.
    """

    styles: str
    combination: str = "train"
    unseen_pairing_share: float = 0.0
    is_drawn_unseen: bool = False


@dataclass
class Placed:
    """One thing of a group: its box (left, top, right, bottom in pixels) and where it is opaque within it."""

    group: int
    box: tuple[int, int, int, int]
    cut: Cut


@dataclass
class Scene:
    """An image and the truth about it.

    Args:
        pixels: RGB of shape (image_size, image_size, 3), as bytes.
        style: whose drawings it shows.
        groups: what it shows.
        things: every single thing, by group.
        owners: of shape (image_size, image_size): 0, or the number, from 1, of the thing that is seen there.
        unseen: what of it training never shows: "style" or "drawing", "combination", "pairing".
    """

    pixels: np.ndarray
    style: str
    groups: list[Group]
    things: list[Placed]
    owners: np.ndarray
    unseen: list[str] = field(default_factory=list)

    @cached_property
    def relations(self) -> list[tuple[int, str, int]]:
        """(first, relation, second) by the numbers of groups, for groups of a single thing."""
        single = {thing.group: thing.box for thing in self.things if self.groups[thing.group].count == 1}
        found = [(number, "inside", number) for number in single if self.groups[number].is_framed]
        least = MIN_RELATION_DISTANCE * len(self.pixels)
        for first, box in single.items():
            for second, other in single.items():
                if first == second:
                    continue
                right = (other[0] + other[2] - box[0] - box[2]) / 2
                down = (other[1] + other[3] - box[1] - box[3]) / 2
                if abs(right) >= least and abs(right) >= 1.5 * abs(down):
                    found.append((first, "left" if right > 0 else "right", second))
                elif abs(down) >= least and abs(down) >= 1.5 * abs(right):
                    found.append((first, "above" if down > 0 else "below", second))
        return found

    def draw_statement(self, random: Random) -> Statement:
        """Something that is true of it."""
        return draw_statement(self.groups, self.relations, random)


class SceneComposer:
    """Makes scene `index` of a split; the same index always gives the same scene.

    Args:
        world: which drawings and combinations there are in which split.
        sprites: all drawings.
        rule: which split.
        seed: of the scenes.
    """

    def __init__(self, world: World, sprites: list[Sprite], rule: SplitRule, seed: int):
        self.world, self.rule, self.seed, self.size = world, rule, seed, world.image_size
        self.sides = {name: [round(share * self.size) for share in shares] for name, shares in SIZES.items()}
        self.frame = max(2, self.size // 32)
        self.backgrounds = draw_backgrounds(self.size, world.seed)
        self.pools = {style: _Pool(world, sprites, rule, style) for style in world.styles[rule.styles]}

    def compose(self, index: int) -> tuple[Scene, Random]:
        """Scene `index`, and a generator for what is said about it."""
        random = Random((self.seed << 64) + index)
        styles = list(self.pools)
        style = styles[int(random.random() * len(styles))]
        pool = self.pools[style]
        groups, sprites, unseen = pool.draw_groups(random)
        unseen = self._style_is_unseen(style) + unseen
        scene = self._lay_out(style, groups, sprites, pool.distractors, random)
        scene.unseen = unseen
        return scene, random

    def _style_is_unseen(self, style: str) -> list[str]:
        if style not in self.world.styles["train"]:
            return ["style"]
        return ["drawing"] if self.rule.is_drawn_unseen else []

    def _lay_out(
        self, style: str, groups: list[Group], sprites: list[Sprite], distractors: list[Sprite], random: Random
    ) -> Scene:
        cuts, margins = [], []
        for number, (group, sprite) in enumerate(zip(groups, sprites, strict=True)):
            # Four things find room in four quarters, frames included.
            room = self.size // 2 - (4 * self.frame if group.is_framed else 0)
            sides = [min(side, room) for side in self.sides[group.size or "medium"]]
            for _ in range(group.count):
                cut = sprite.cut(sides[random.random() < 0.5], group.color if group.color != sprite.color else None)
                cuts.append((number, cut.mirror() if random.random() < 0.5 else cut))
                margins.append(2 * self.frame if group.is_framed else 0)
        sizes = [
            (cut.is_opaque.shape[1] + 2 * margin, cut.is_opaque.shape[0] + 2 * margin)
            for (_, cut), margin in zip(cuts, margins, strict=True)
        ]
        background = self.backgrounds[int(random.random() * len(self.backgrounds))]
        corners = self._place(sizes, random) or self._place_in_quarters(sizes, random)
        while True:
            things = []
            for (group, cut), margin, (left, top) in zip(cuts, margins, corners, strict=True):
                left, top = left + margin, top + margin
                height, width = cut.is_opaque.shape
                things.append(Placed(group, (left, top, left + width, top + height), cut))
            owners = np.zeros((self.size, self.size), np.uint8)
            for number, (thing, margin) in enumerate(zip(things, margins, strict=True), start=1):
                left, top, right, bottom = thing.box
                if margin:
                    owners[top - margin : bottom + margin, left - margin : right + margin] = 0
                owners[top:bottom, left:right][thing.cut.is_opaque] = number
            seen = np.bincount(owners.ravel(), minlength=len(things) + 1)[1:].tolist()
            if all(n >= MIN_VISIBLE_SHARE * thing.cut.num_opaque for n, thing in zip(seen, things, strict=True)):
                break
            corners = self._place_in_quarters(sizes, random)
        canvas = background.copy()
        self._scatter(canvas, corners, sizes, distractors, random)
        for thing, margin in zip(things, margins, strict=True):
            left, top = thing.box[:2]
            if margin:
                self._draw_frame(canvas, thing.box)
            thing.cut.lay_on(canvas, left, top)
        return Scene(canvas, style, groups, things, owners)

    def _place(self, sizes: list[tuple[int, int]], random: Random) -> list[tuple[int, int]] | None:
        """A left top corner for each size; None where too much would be hidden."""
        corners = [None] * len(sizes)
        taken = []
        for number in sorted(range(len(sizes)), key=lambda number: -sizes[number][0] * sizes[number][1]):
            width, height = sizes[number]
            least = 2.0
            for _ in range(10):
                left = int(random.random() * (self.size - width + 1))
                top = int(random.random() * (self.size - height + 1))
                overlap = 0.0
                for other_left, other_top, other_right, other_bottom in taken:
                    across = min(left + width, other_right) - max(left, other_left)
                    down = min(top + height, other_bottom) - max(top, other_top)
                    if across > 0 and down > 0:
                        smaller = min(width * height, (other_right - other_left) * (other_bottom - other_top))
                        overlap = max(overlap, across * down / smaller)
                if overlap < least:
                    least, corner = overlap, (left, top)
                if overlap <= _MAX_OVERLAP:
                    break
            if least > 1 - MIN_VISIBLE_SHARE:
                return None
            corners[number] = corner
            taken.append((*corner, corner[0] + width, corner[1] + height))
        return corners

    def _place_in_quarters(self, sizes: list[tuple[int, int]], random: Random) -> list[tuple[int, int]]:
        """A left top corner for each of up to four sizes, so that nothing overlaps."""
        half = self.size // 2
        quarters = [(0, 0), (half, 0), (0, half), (half, half)]
        corners = []
        for width, height in sizes:
            left, top = quarters.pop(int(random.random() * len(quarters)))
            left += int(random.random() * (half - width + 1))
            corners.append((left, top + int(random.random() * (half - height + 1))))
        return corners

    def _scatter(
        self,
        canvas: np.ndarray,
        corners: list[tuple[int, int]],
        sizes: list[tuple[int, int]],
        distractors: list[Sprite],
        random: Random,
    ) -> None:
        """Lay up to two distractors where nothing else is."""
        side = round(0.13 * self.size)
        for _ in range(int(random.random() * 3) if distractors else 0):
            cut = distractors[int(random.random() * len(distractors))].cut(side, None)
            height, width = cut.is_opaque.shape
            left = int(random.random() * (self.size - width + 1))
            top = int(random.random() * (self.size - height + 1))
            if all(
                left + width <= x or x + w <= left or top + height <= y or y + h <= top
                for (x, y), (w, h) in zip(corners, sizes, strict=True)
            ):
                cut.lay_on(canvas, left, top)

    def _draw_frame(self, canvas: np.ndarray, box: tuple[int, int, int, int]) -> None:
        left, top, right, bottom = box
        outer, inner = 2 * self.frame, self.frame
        canvas[top - outer : bottom + outer, left - outer : right + outer] = _FRAME_COLOR
        canvas[top - inner : bottom + inner, left - inner : right + inner] = _FRAME_MAT


class _Pool:
    """The drawings of one style in one split, and how groups are drawn from them."""

    def __init__(self, world: World, sprites: list[Sprite], rule: SplitRule, style: str):
        self.rule = rule
        sprites = [sprite for sprite in sprites if sprite.style == style]
        self.distractors = [sprite for sprite in sprites if not sprite.subject.concept]
        self.looks: dict[str, list[tuple[Sprite, list[str]]]] = {}  # with the colours that training shows
        self.unseen_looks: dict[str, list[tuple[Sprite, str | None]]] = {}
        unseen_drawings = {tuple(drawing) for drawing in world.unseen_drawings}
        unseen_pairings = {tuple(pairing) for pairing in world.unseen_pairings}
        for sprite in sprites:
            concept, action = sprite.subject.concept, sprite.subject.action
            is_unseen = (style, concept, action) in unseen_drawings
            if not concept or (is_unseen != rule.is_drawn_unseen and style in world.styles["train"]):
                continue
            if (concept, action) in unseen_pairings:
                self.unseen_looks.setdefault(concept, []).append((sprite, sprite.color))
                continue
            colors = list(COLORS) if sprite.is_recolorable else []
            unseen_colors = [color for color in colors if (concept, color) in unseen_pairings]
            seen_colors = [color for color in colors if color not in unseen_colors]
            self.looks.setdefault(concept, []).append((sprite, seen_colors))
            self.unseen_looks.setdefault(concept, []).extend((sprite, color) for color in unseen_colors)
        # A man has a drawing for everything that he does, and is drawn the more often.
        self.concepts = [concept for concept, looks in self.looks.items() for _ in range((len(looks) + 1) // 2)]
        pairs = {"validation": world.validation_pairs, "test": world.test_pairs}
        required = _as_partners(pairs.get(rule.combination, []))
        self.partners = {
            concept: [other for other in required.get(concept, ()) if other in self.looks] for concept in self.looks
        }
        forbidden = [of_split for split, of_split in pairs.items() if split != rule.combination]
        self.forbidden = _as_partners(sum(forbidden, []))
        self.needs_pair = bool(required)
        self.first_concepts = [c for c in self.concepts if self.partners[c]] if self.needs_pair else self.concepts
        self.first_concepts_unseen = [c for c in self.first_concepts if self.unseen_looks.get(c)]

    def draw_groups(self, random: Random) -> tuple[list[Group], list[Sprite], list[str]]:
        """What a scene shows, the drawing of each group, and what of it training never shows."""
        needs_pairing = self.rule.unseen_pairing_share > 0 and random.random() < self.rule.unseen_pairing_share
        counts = self._draw_counts(random)
        concepts = self._draw_concepts(len(counts), needs_pairing, random)
        groups, sprites, unseen = [], [], ["combination"] if self.needs_pair else []
        frame = int(random.random() * len(counts)) if random.random() < 0.12 else None
        for number, (concept, count) in enumerate(zip(concepts, counts, strict=False)):
            sprite, color, is_unseen = self._draw_look(concept, needs_pairing, random)
            if is_unseen and "pairing" not in unseen:
                unseen.append("pairing")
            is_framed = number == frame and count == 1
            share = random.random()
            size = None if is_framed or 0.35 <= share < 0.65 else "small" if share < 0.35 else "big"
            groups.append(Group(concept, count, color, size, sprite.subject.action, is_framed))
            sprites.append(sprite)
        return groups, sprites, unseen

    def _draw_counts(self, random: Random) -> list[int]:
        """How many of each group: four things at most, two groups at least where a combination is needed."""
        share = random.random()
        total = 1 if share < 0.12 else 2 if share < 0.45 else 3 if share < 0.8 else 4
        if self.needs_pair:
            total = max(total, 2)
        counts = []
        while total > 0:
            most = total - 1 if self.needs_pair and not counts else total
            count = 1 if most == 1 or random.random() < 0.8 else 2 + int(random.random() * (most - 1))
            counts.append(count)
            total -= count
        return counts

    def _draw_concepts(self, number: int, needs_pairing: bool, random: Random) -> list[str]:
        first_concepts = self.first_concepts_unseen if needs_pairing else self.first_concepts
        chosen = [first_concepts[int(random.random() * len(first_concepts))]]
        if self.needs_pair:
            partners = self.partners[chosen[0]]
            chosen.append(partners[int(random.random() * len(partners))])
        for _ in range(8 * number):
            if len(chosen) == number:
                break
            concept = self.concepts[int(random.random() * len(self.concepts))]
            if all(concept != other and concept not in self.forbidden.get(other, ()) for other in chosen):
                chosen.append(concept)
        return chosen

    def _draw_look(self, concept: str, is_unseen: bool, random: Random) -> tuple[Sprite, str | None, bool]:
        """A drawing of the concept and its colour; whether training never shows the concept so, if that is wanted."""
        if is_unseen and (looks := self.unseen_looks.get(concept)):
            return *looks[int(random.random() * len(looks))], True
        looks = self.looks[concept]
        sprite, colors = looks[int(random.random() * len(looks))]
        if colors and random.random() < _RECOLORED_SHARE:
            return sprite, colors[int(random.random() * len(colors))], False
        return sprite, sprite.color, False


def _as_partners(pairs: list[list[str]]) -> dict[str, list[str]]:
    partners: dict[str, list[str]] = {}
    for first, second in pairs:
        partners.setdefault(first, []).append(second)
        partners.setdefault(second, []).append(first)
    return partners


def load_sprites(folder: Path) -> list[Sprite]:
    """The drawings of a folder that `prepare_scenes` has written."""
    return [
        Sprite(
            Subject(row["concept"], row["category"], row["action"]),
            row["style"],
            np.asarray(row["image"]),
            row["color"],
            row["is_recolorable"],
        )
        for row in load_from_disk(str(folder / DRAWINGS_NAME))
    ]


class SceneDataset(Dataset):
    """Scenes without an end, each with a caption: pair `index` is a function of the seed and the index alone.

    So any worker of any process may make it, and what a resumed run has seen already is not made again.

    Args:
        folder: what `prepare_scenes` has written.
        seed: of the scenes; not that of the world.
        counts: takes down how many were made.

    Raises:
        ValueError: the folder holds no world.
    """

    column_names = ["image", "caption"]
    # Trainer wants a length. It only says how often Trainer's epochs begin: indices go on from one to the next.
    num_scenes = 2**20

    def __init__(self, folder: str | Path, seed: int = 0, counts: "DataCounts | None" = None):
        if not is_world(folder):
            raise ValueError(f"{str(folder)!r} has no {WORLD_NAME}; `prepare_scenes` writes it")
        folder = Path(folder)
        self.composer = SceneComposer(World.load(folder), load_sprites(folder), SplitRule("train"), seed)
        self.counts = counts

    def __len__(self) -> int:
        return self.num_scenes

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The `image` and the `caption` of one scene; any index from 0 on."""
        if self.counts is not None:
            self.counts.add("pairs_read")
        scene, random = self.composer.compose(index)
        return {"image": Image.fromarray(scene.pixels), "caption": say(scene.draw_statement(random))}


def is_world(folder: str | Path) -> bool:
    """Whether `prepare_scenes` has written it."""
    return (Path(folder) / WORLD_NAME).is_file()
