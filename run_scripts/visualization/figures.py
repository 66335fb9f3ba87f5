# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Codes as PNG, for papers and slides: sheets of several, and one by one."""

import textwrap
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from tqdm.auto import tqdm

from run_scripts.visualization.code_statistics import ModalityStatistics
from run_scripts.visualization.code_summary import CodeSummary
from run_scripts.visualization.gallery import pieces
from run_scripts.visualization.records import HeatMap, decode_heat_map


NUM_FIGURE_CODES = 12
CODES_PER_SHEET = 6
IMAGES_PER_CODE = 4
CAPTIONS_PER_CODE = 4
# As in gallery.js: a veil over the image, thick where a score is lowest and gone where it is highest.
MARK_COLOR = "#ffd866"
VEIL_COLOR, VEIL_OPACITY = np.array([22, 22, 58]) / 255, 220 / 255


def choose_codes(codes: list[CodeSummary]) -> list[int]:
    """The most coherent codes, those with most images first."""
    measured = [code for code in codes if code.image_coherence is not None]
    measured.sort(key=lambda code: (-len(code.top_images), -code.image_coherence.share, code.code))
    return [code.code for code in measured[:NUM_FIGURE_CODES]]


def write_figures(
    codes: list[CodeSummary],
    image: ModalityStatistics,
    text: ModalityStatistics,
    figure_codes: list[int] | None,
    output_dir: Path,
) -> None:
    """Write figures/codes_*.png, six codes on each: images plain and with heat maps, and marked captions; and a
    figure of each of these codes alone, figures/code_NUMBER.png."""
    numbers = choose_codes(codes) if figure_codes is None else figure_codes
    (output_dir / "figures").mkdir()
    sheets = [numbers[start : start + CODES_PER_SHEET] for start in range(0, len(numbers), CODES_PER_SHEET)]
    for index, sheet in enumerate(tqdm(sheets, desc="figures", unit="sheet"), start=1):
        figure = draw_sheet([codes[number] for number in sheet], image, text, output_dir / "images")
        figure.savefig(output_dir / "figures" / f"codes_{index}.png", dpi=120)
        for number in sheet:
            figure = plot_code(codes[number], image, text, output_dir / "images")
            figure.savefig(output_dir / "figures" / f"code_{number}.png", dpi=200)


def draw_sheet(
    codes: list[CodeSummary], image: ModalityStatistics, text: ModalityStatistics, thumbnails: Path
) -> Figure:
    """One sheet: a row for each code."""
    figure = Figure(figsize=(13, 1.55 * len(codes)), layout="constrained")
    widths = [1.5, *[1, 1] * IMAGES_PER_CODE, 3.2]
    grid = figure.subplots(len(codes), len(widths), width_ratios=widths, squeeze=False)
    for code, row in zip(codes, grid, strict=True):
        for axes in row:
            axes.axis("off")
        name = textwrap.fill(", ".join(code.words), 16) if code.words else "no common word"
        row[0].text(0, 0.5, f"{code.code}\n{name}", va="center", fontsize=9, parse_math=False)
        for place, (item, _) in enumerate(code.top_images[:IMAGES_PER_CODE]):
            thumbnail = Image.open(thumbnails / f"{item}.webp").convert("RGB")
            row[1 + 2 * place].imshow(thumbnail)
            row[2 + 2 * place].imshow(lay_over(thumbnail, image.items[item].box, image.places[code.code, item]))
        lines = []
        for item, _ in code.top_captions[:CAPTIONS_PER_CODE]:
            parts = pieces(text.items[item], text.places[code.code, item])
            words = ["[" + part["text"] + "]" if part["is_winner"] else part["text"] for part in parts]
            spaces = [" " if part["space"] else "" for part in parts]
            line = "".join(space + word for space, word in zip(spaces, words, strict=True))
            lines.append(textwrap.shorten(line, 90))
        captions = "\n".join(textwrap.fill(line, 46) for line in lines)
        row[-1].text(0, 0.5, captions, va="center", fontsize=8, parse_math=False)
    return figure


def plot_code(code: CodeSummary, image: ModalityStatistics, text: ModalityStatistics, thumbnails: Path) -> Figure:
    """One code, 9 inches wide: its strongest images with heat maps beside its strongest captions with the word marked.

    Args:
        code: what is told of it.
        image, text: statistics that hold its strongest items.
        thumbnails: the folder of the images.
    """
    num_images, side, gap, left, right = 5, 1.0, 0.07, 0.15, 5.7
    width, height = 9, 2 * (side + gap) + 0.75
    figure = Figure(figsize=(width, height))
    title = f"Code {code.code}" + (f": {code.words[0]}" if code.words else "")
    rates = f"fires in {code.image_rate:.1%} of images and {code.text_rate:.1%} of captions"
    on_line = {"y": 1 - 0.3 / height, "va": "center", "parse_math": False}
    figure.text(x=left / width, s=title, fontsize=13, weight="bold", **on_line)
    figure.text(x=right / width, s=rates, fontsize=9, color="#666666", **on_line)
    for place, (item, _) in enumerate(code.top_images[:num_images]):
        thumbnail = Image.open(thumbnails / f"{item}.webp").convert("RGB")
        heated = lay_over(thumbnail, image.items[item].box, image.places[code.code, item])
        for line, pixels in enumerate((thumbnail, heated)):
            bottom = height - 0.55 - side - line * (side + gap)
            x = left + place * (side + gap)
            axes = figure.add_axes((x / width, bottom / height, side / width, side / height))
            axes.imshow(pixels, interpolation="lanczos")
            axes.axis("off")
    top = height - 0.75
    for item, _ in code.top_captions:
        parts = pieces(text.items[item], text.places[code.code, item])
        top = write_marked(figure, parts, right, top, width - left) - 0.32
        if top < 0.5:  # no room for two more lines
            break
    return figure


def write_marked(figure: Figure, parts: list[dict], left: float, top: float, right: float) -> float:
    """Write a caption with its winning word marked, in as many lines as it needs.

    Args:
        figure: to write on.
        parts: as `pieces` gives them.
        left, top, right: where it begins, and the place that no line crosses, in inches from the left and the bottom.

    Returns:
        The height of the last line.
    """
    renderer = FigureCanvasAgg(figure).get_renderer()
    width, height = figure.get_size_inches()
    x = left
    for part in parts:
        text = figure.text(0, 0, part["text"], fontsize=10, parse_math=False)
        length = text.get_window_extent(renderer).width / figure.dpi
        x += 0.05 if part["space"] and x > left else 0
        if part["space"] and x + length > right:
            x, top = left, top - 0.22
        text.set_position((x / width, top / height))
        if part["is_winner"]:
            text.set_bbox({"facecolor": MARK_COLOR, "edgecolor": "none", "pad": 1.5})
        x += length
    return top


def lay_over(image: Image.Image, box: tuple[float, float, float, float], heat_map: HeatMap) -> np.ndarray:
    """A heat map on an RGB image, as (height, width, 3) in [0, 1]; what the model does not see stays plain.

    Args:
        image: of any size.
        box: what the map covers: left, top, width and height in per cent of the image.
        heat_map: the map.
    """
    width, height = image.size
    left, top, box_width, box_height = box
    box_size = (max(round(box_width * width / 100), 1), max(round(box_height * height / 100), 1))
    levels = Image.fromarray((decode_heat_map(heat_map) * 255).astype(np.uint8))
    levels = np.asarray(levels.resize(box_size, Image.Resampling.BILINEAR))[..., None] / 255
    opacity = VEIL_OPACITY * (1 - levels)  # (height, width, 1)
    mixed = np.asarray(image) / 255
    x, y = round(left * width / 100), round(top * height / 100)
    inside = np.s_[max(y, 0) : y + box_size[1], max(x, 0) : x + box_size[0]]
    part = mixed[inside]
    opacity = opacity[max(-y, 0) :, max(-x, 0) :][: part.shape[0], : part.shape[1]]
    mixed[inside] = (1 - opacity) * part + opacity * VEIL_COLOR
    return mixed
