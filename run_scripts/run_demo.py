# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""The first run: train a small FDT model on emoji, test it on drawings it has never seen, and use it.

    python -m run_scripts.run_demo
    python -m run_scripts.run_demo --styles all

Data come from `prepare_emoji_data`, training is `run_pretraining` with a config of `run_scripts/configs`. Everything
is written into the config's `output_dir`: the model, results.json, loss_curve.png, contact_sheet.png, and in `gallery`
pages that show what each code means (`run_visualization`).
"""

import json
import logging
import random
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import matplotlib.pyplot as plt
import torch
from datasets import Dataset, DatasetDict, load_from_disk
from transformers import HfArgumentParser

from modeling_fdt import FDTModel, FDTProcessor
from run_scripts.arguments import parse_arguments
from run_scripts.evaluation.naming import NUM_CHOICES, all_concepts, evaluate_naming, pixel_controls
from run_scripts.evaluation.results import format_table
from run_scripts.evaluation.retrieval import RECALLS
from run_scripts.prepare_emoji_data import EmojiDataArguments, prepare_emoji_data
from run_scripts.run_visualization import VisualizationArguments
from run_scripts.run_visualization import main as run_visualization
from run_scripts.training.arguments import PRETRAINING
from run_scripts.training.pretraining import train


CONFIGS = Path(__file__).with_name("configs")


@dataclass
class DemoArguments:
    styles: Literal["two", "all"] = field(default="two", metadata={"help": "`two` needs pip only, `all` needs npm."})
    smoke: bool = field(default=False, metadata={"help": "A few steps of a tiny model, to see that all parts run."})


def evaluate(
    model: FDTModel,
    processor: FDTProcessor,
    dataset: DatasetDict,
    split: str,
    concepts: dict[str, tuple[str, int]],
    seed: int,
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Test a model on one split: every metric as JSON, and the predicted name of every drawing."""
    test = dataset[split]
    metrics, predictions = evaluate_naming(model, processor, test["image"], test["concept"][:], concepts, seed)
    for name, control in pixel_controls(processor, dataset["train"], test).items():
        metrics[name].control = control
    return {name: asdict(metric) for name, metric in metrics.items()}, predictions


def table_rows(metrics: dict[str, dict[str, Any]], split: Dataset, num_names: int) -> dict[str, dict[str, Any]]:
    """What the table shows of the metrics of `evaluate_naming`, by a heading that says among how many."""
    headings = {
        "top_1": f"zero-shot top-1 among {num_names} names",
        "top_5": f"zero-shot top-5 among {num_names} names",
        f"top_1_of_{NUM_CHOICES}": f"zero-shot top-1 among {NUM_CHOICES} names",
        "category": "category accuracy (chance: the largest)",
    }
    candidates = {"image_to_text": f"{len(set(split['concept']))} captions", "text_to_image": f"{len(split)} images"}
    for direction, number in candidates.items():
        headings.update({f"{direction}_R@{k}": f"R@{k} {direction.replace('_', ' ')}, {number}" for k in RECALLS})
    headings["active_per_image"] = "active codes per image"
    headings["active_per_caption"] = "active codes per caption"
    return {heading: metrics[name] for name, heading in headings.items()}


def plot_loss_curve(log_history: list[dict], path: Path) -> None:
    """The training loss by step, as PNG."""
    points = [(entry["step"], entry["loss"]) for entry in log_history if "loss" in entry]
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.plot(*zip(*points, strict=True))
    axes.set(xlabel="step", ylabel="contrastive loss", ylim=(0, None))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_contact_sheet(split: Dataset, predictions: list[str], rows: list[int], path: Path) -> None:
    """Drawings with their predicted names, green where right, else red with the true name below, as PNG."""
    figure, grid = plt.subplots(6, 8, figsize=(16, 13), layout="constrained")
    for axes in grid.flat:
        axes.axis("off")
    for axes, row in zip(grid.flat, rows, strict=False):
        drawing, prediction = split[row], predictions[row]
        is_right = prediction == drawing["caption"]
        title = prediction if is_right else f"{prediction}\n({drawing['caption']})"
        axes.imshow(drawing["image"])
        axes.set_title(title, fontsize=8, color="green" if is_right else "firebrick", wrap=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(arguments: DemoArguments) -> None:
    suffix = "_smoke" if arguments.smoke else ""
    config = CONFIGS / f"emoji_{arguments.styles}_styles{suffix}.json"
    model_arguments, data_arguments, training_arguments = parse_arguments(PRETRAINING, [str(config)])
    seed, output_dir = training_arguments.seed, Path(training_arguments.output_dir)

    if not Path(data_arguments.dataset).exists():
        prepare_emoji_data(EmojiDataArguments(output_dir=data_arguments.dataset, styles=arguments.styles))
    trainer = train(model_arguments, data_arguments, training_arguments)

    dataset = load_from_disk(data_arguments.dataset)
    model, processor = FDTModel.from_pretrained(output_dir).eval(), FDTProcessor.from_pretrained(output_dir)
    concepts = all_concepts(dataset)
    runtime = next(entry["train_runtime"] for entry in trainer.state.log_history if "train_runtime" in entry)
    report = {
        "config": config.name,
        "seed": seed,
        "steps": trainer.state.global_step,
        "training_seconds": runtime,
        "num_threads": torch.get_num_threads(),
        "num_train_drawings": len(dataset["train"]),
        "results": {},
    }
    print(f"\nTrained {report['steps']} steps in {runtime:.0f} seconds on {report['num_threads']} threads.")
    predictions = {}
    for name in [name for name in dataset if name.startswith("test")]:
        report["results"][name], predictions[name] = evaluate(model, processor, dataset, name, concepts, seed)
        rows = table_rows(report["results"][name], dataset[name], len(concepts))
        print("\n" + format_table(f"{len(dataset[name])} drawings never seen ({name})", rows))
    (output_dir / "results.json").write_text(json.dumps(report, indent=2) + "\n")

    test = dataset["test"]
    rows = random.Random(seed).sample(range(len(test)), 48)
    plot_loss_curve(trainer.state.log_history, output_dir / "loss_curve.png")
    plot_contact_sheet(test, predictions["test"], rows, output_dir / "contact_sheet.png")

    picture, true_name = output_dir / "held_out_drawing.png", test[rows[0]]["caption"]
    test[rows[0]]["image"].save(picture)
    others = sorted({name for name, _ in concepts.values()} - {true_name})
    labels = [true_name, *random.Random(seed).sample(others, NUM_CHOICES - 1)]
    print(f"\nThe saved model, loaded in a fresh process by pipeline, on {picture} ({true_name}):", flush=True)
    command = ["-m", "run_scripts.run_zero_shot", "--model", str(output_dir), "--image", str(picture), "--labels"]
    subprocess.run([sys.executable, *command, *labels], check=True)

    gallery = output_dir / "gallery"
    if gallery.exists():  # of an earlier run
        shutil.rmtree(gallery)
    run_visualization(
        VisualizationArguments(
            model=str(output_dir),
            dataset=data_arguments.dataset,
            output_dir=str(gallery),
            category_column="category",
            seed=seed,
        )
    )
    print(f"\nWritten to {output_dir}: the model, results.json, loss_curve.png, contact_sheet.png, gallery/index.html")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    main(*HfArgumentParser(DemoArguments, allow_abbrev=False).parse_args_into_dataclasses())
