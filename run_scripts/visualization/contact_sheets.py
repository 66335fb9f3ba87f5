# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""What a run looks like at a glance, as PNG: its loss, and images with the names that a model gives them."""

import math
from pathlib import Path

from datasets import Dataset
from matplotlib.figure import Figure


RIGHT, WRONG, MISSED = "#1a7f37", "#c1121f", "#8a8a8a"
NUM_DRAWINGS_A_ROW, NUM_SCENES_A_ROW = 8, 6


def plot_loss_curve(log_history: list[dict], path: Path) -> None:
    """The training loss by step."""
    points = [(entry["step"], entry["loss"]) for entry in log_history if "loss" in entry]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*points, strict=True))
    axes.set(xlabel="step", ylabel="loss")
    figure.savefig(path, dpi=120)


def plot_drawings(split: Dataset, predictions: list[str], rows: list[int], path: Path) -> None:
    """Drawings with their predicted names, green where right, else red with the true name below."""
    num_lines = math.ceil(len(rows) / NUM_DRAWINGS_A_ROW)
    figure = Figure(figsize=(2 * NUM_DRAWINGS_A_ROW, 2.2 * num_lines), layout="constrained")
    grid = figure.subplots(num_lines, NUM_DRAWINGS_A_ROW, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, row in zip(grid.flat, rows, strict=False):
        drawing, prediction = split[row], predictions[row]
        is_right = prediction == drawing["caption"]
        title = prediction if is_right else f"{prediction}\n({drawing['caption']})"
        axes.imshow(drawing["image"])
        axes.set_title(title, fontsize=8, color=RIGHT if is_right else WRONG, wrap=True)
    figure.savefig(path, dpi=100)


def plot_scenes(scenes: Dataset, tags: list[list[str]], num_names: int, path: Path) -> None:
    """Scenes with the names that a model gives them: green where the thing is there, else red; what it missed in grey.

    Args:
        scenes: rows with `image` and `concepts`.
        tags: for each of them as many names as it has concepts, the best first.
        num_names: how many there were to choose from.
        path: of the PNG.
    """
    num_lines = math.ceil(len(scenes) / NUM_SCENES_A_ROW)
    most_names = max(map(len, tags))
    # In inches: a scene, and below it a line for each name.
    side, line = 1.9, 0.2
    cell = side + line * most_names + 0.25
    figure = Figure(figsize=(NUM_SCENES_A_ROW * (side + 0.2) + 0.2, num_lines * cell + 0.55))
    width, height = figure.get_size_inches()
    num_right = sum(name in row["concepts"] for row, names in zip(scenes, tags, strict=True) for name in names)
    title = (
        f"{num_right} of the {sum(map(len, tags))} names given to these {len(scenes)} unseen scenes are right, "
        f"chosen from {num_names}"
    )
    figure.text(0.2 / width, 1 - 0.3 / height, title, fontsize=13, va="center")
    for number, (row, names) in enumerate(zip(scenes, tags, strict=True)):
        left = 0.2 + number % NUM_SCENES_A_ROW * (side + 0.2)
        top = height - 0.55 - number // NUM_SCENES_A_ROW * cell
        axes = figure.add_axes((left / width, (top - side) / height, side / width, side / height))
        axes.imshow(row["image"], interpolation="lanczos")
        axes.axis("off")
        missed = iter([name for name in row["concepts"] if name not in names])
        for place, name in enumerate(names):
            y = (top - side - line * (place + 0.65)) / height
            is_right = name in row["concepts"]
            text = f"✓ {name}" if is_right else f"✗ {name}"
            figure.text(left / width, y, text, fontsize=9.5, color=RIGHT if is_right else WRONG, va="center")
            if not is_right:  # as many names are missed as are wrong
                style = {"fontsize": 9.5, "color": MISSED, "style": "italic"}
                figure.text((left + side) / width, y, next(missed), va="center", ha="right", **style)
    figure.savefig(path, dpi=120)
