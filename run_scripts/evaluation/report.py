# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""One self-contained HTML page of evaluation results: tables, plots, and what is needed to find them again."""

import math
import re
from pathlib import Path
from typing import Any

import jinja2

from run_scripts.evaluation.results import format_value, has_any


# The drawing area of a line chart, in units that are about pixels on a phone.
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 232, 44, 14, 26, 44


def write_report(records: list[dict[str, Any]], path: Path) -> None:
    """Write the page.

    Args:
        records: results as `results.build_record` gives them, in the order of the page.
        path: the HTML file.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(words=metric_words, line_chart=place_lines, bar_chart=place_bars, has_any=has_any)
    environment.globals.update(format_value=format_value)
    page = environment.get_template("report.html.jinja").render(
        records=records, titles=tell_apart(records), models=sorted({record["model"]["name"] for record in records})
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def metric_words(name: str) -> str:
    """A metric's name as people write it: image_to_text_R@1 is "image to text R@1"."""
    name = re.sub(r"top_(\d+)", r"top-\1", name)
    name = re.sub(r"_(\d+)_shot", r", \1-shot", name)
    return name.replace("_", " ")


def task_title(task: str) -> str:
    """A task's name at the start of a heading."""
    return "VQA" if task == "vqa" else task.replace("-", " ").replace("zero shot", "zero-shot").capitalize()


def tell_apart(records: list[dict[str, Any]]) -> list[str]:
    """A heading for each result: its task, and where several are of one task, the flags in which they differ."""
    titles = []
    for record in records:
        same_task = [_flags(other["command"]) for other in records if other["task"] == record["task"]]
        differing = [
            f"{name} {value}"
            for name, value in _flags(record["command"]).items()
            if any(other.get(name) != value for other in same_task)
        ]
        titles.append(": ".join([task_title(record["task"]), *([", ".join(differing)] if differing else [])]))
    return titles


def _flags(command: str) -> dict[str, str]:
    """The flags of a command with their values, less those that only say where its results go."""
    flags = dict(re.findall(r"--(\w+)((?: (?!--)\S+)*)", command))
    return {name: value.strip() for name, value in flags.items() if name not in ("output", "report")}


def place_bars(chart: dict[str, Any]) -> list[dict[str, Any]]:
    """Name, value and length in per cent of every bar; a share of 1 is the full length, else the largest value."""
    (points,) = chart["series"].values()
    longest = 1 if chart["unit"] == "share" else max(value for _, value in points)
    return [
        {"name": name, "value": format_value(value, chart["unit"]), "length": 100 * value / longest}
        for name, value in points
    ]


def place_lines(chart: dict[str, Any]) -> dict[str, Any]:
    """Where the lines, points and ticks of a chart are in its drawing."""
    points = [point for series in chart["series"].values() for point in series]
    xs, largest = [x for x, _ in points], max(y for _, y in points)
    y_ticks = nice_ticks(0, largest or 1)

    def scale(x: float) -> float:
        return math.log10(x) if chart["log_x"] else x

    low, high = scale(min(xs)), scale(max(xs))

    def place(x: float, y: float) -> tuple[float, float]:
        share = (scale(x) - low) / (high - low) if high > low else 0.5
        across = LEFT + share * (WIDTH - LEFT - RIGHT)
        return round(across, 1), round(HEIGHT - BOTTOM - y / y_ticks[-1] * (HEIGHT - BOTTOM - TOP), 1)

    lines = []
    for name, series in chart["series"].items():
        dots = [(*place(x, y), f"{x:g}: {format_value(y, chart['unit'])}") for x, y in series]
        lines.append({"name": name, "path": " ".join(f"{x},{y}" for x, y, _ in dots), "dots": dots})
    x_ticks = log_ticks(min(xs), max(xs)) if chart["log_x"] else nice_ticks(min(xs), max(xs))
    if len(set(xs)) <= 5:
        x_ticks = sorted(set(xs))
    digits = 0 if chart["unit"] == "share" and y_ticks[-1] >= 0.04 else 1
    return {
        "lines": lines,
        "x_ticks": [(place(x, 0)[0], f"{x:g}") for x in x_ticks if min(xs) <= x <= max(xs)],
        "y_ticks": [(place(xs[0], y)[1], format_value(y, chart["unit"], digits)) for y in y_ticks],
        "box": {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT, "bottom": HEIGHT - BOTTOM},
    }


def nice_ticks(low: float, high: float, number: int = 5) -> list[float]:
    """Round numbers in even steps from at most `low` to at least `high`."""
    rough = (high - low) / number or 1
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten from `low` to `high`; over more than two decades the powers only."""
    factors = (1, 2, 5) if high / low <= 200 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [factor * 10.0**power for power in powers for factor in factors]
    return [tick for tick in ticks if low <= tick <= high]
