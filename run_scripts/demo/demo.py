# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""The demo: make the data, train, evaluate, draw the gallery, and use the saved model."""

import json
import random
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict, load_from_disk
from transformers import PreTrainedModel, ProcessorMixin

from run_scripts.arguments import DataArguments, parse_arguments
from run_scripts.data.emoji import write_emoji_data
from run_scripts.data.scene_splits import write_scenes
from run_scripts.data.source import copy_credits
from run_scripts.demo.arguments import DemoArguments
from run_scripts.evaluation import naming, scene_metrics
from run_scripts.evaluation.embedding import load_model
from run_scripts.evaluation.results import format_table
from run_scripts.evaluation.tagging import best_tags
from run_scripts.evaluation.truth import collect_names, read_concepts
from run_scripts.training.arguments import PRETRAINING, ModelArguments
from run_scripts.training.pretraining import train
from run_scripts.visualization.arguments import VisualizationArguments
from run_scripts.visualization.collection import visualize
from run_scripts.visualization.contact_sheets import plot_drawings, plot_loss_curve, plot_scenes


CONFIGS = Path(__file__).parents[1] / "configs"
SCENE_SPLITS = {  # the first is shown
    "test_combinations": "scenes of things never seen together",
    "test": "scenes of drawings never seen, of things never seen together",
}
NUM_SCENES_SHOWN, NUM_DRAWINGS_SHOWN, NUM_CODES_SHOWN = 24, 48, 6
NUM_LABELS = 10
# A few steps with few codes; and few scenes to test on.
SMOKE_FLAGS = "--max_steps 6 --per_device_train_batch_size 32 --warmup_steps 1 --logging_steps 2".split()
SMOKE_FLAGS += ["--model_config", '{"codebook_size": 64}']
SMOKE_SCENES = {"num_scenes": 40, "num_false_captions": 8}
# What it takes to use the saved model, run in a process of its own.
USE = """
import sys
from transformers import pipeline
import modeling_fdt  # registers FDT with transformers

model, image, template, *labels = sys.argv[1:]
classify = pipeline("zero-shot-image-classification", model=model)
for answer in classify(image, candidate_labels=labels, hypothesis_template=template):
    print(f"{answer['score']:7.1%}  {answer['label']}")
"""


def prepare(arguments: DemoArguments, model_arguments: ModelArguments, data_arguments: DataArguments) -> DatasetDict:
    """The data of the run, made where they are not there yet."""
    folder = data_arguments.dataset
    if not Path(folder).exists():
        if arguments.images == "scenes":
            image_size = model_arguments.image_processor_config["crop_size"]["height"]
            changes = SMOKE_SCENES if arguments.smoke else {}
            write_scenes(folder, arguments.styles, image_size, **changes)
        else:
            write_emoji_data(folder, arguments.styles, seed=0)
    return load_from_disk(folder)


@dataclass
class Shown:
    """What follows the tables: an image and its file, its true names, all names, a template, and codes to draw."""

    image: Any
    file: str
    true_names: list[str]
    names: list[str]
    template: str
    codes: list[int] | None


def report_on_scenes(
    model: PreTrainedModel, processor: ProcessorMixin, splits: DatasetDict, folder: str, seed: int, output_dir: Path
) -> tuple[dict, Shown]:
    """Print the tables, draw the contact sheet; returns metrics by split, and what is shown next."""
    results, matches = {}, {}
    for split, what in SCENE_SPLITS.items():
        metrics, matches[split] = scene_metrics.evaluate_scenes(model, processor, folder, split, seed)
        results[split] = {name: asdict(metric) for name, metric in metrics.items()}
        print("\n" + format_table(f"{len(splits[split]):,} {what}", scene_metrics.list_scene_rows(results[split])))
    metrics = scene_metrics.evaluate_false_captions(model, processor, folder)
    results["false_captions"] = {name: asdict(metric) for name, metric in metrics.items()}
    print(
        "\n" + format_table("captions with one thing false", scene_metrics.list_scene_rows(results["false_captions"]))
    )

    shown_split = next(iter(SCENE_SPLITS))
    split = splits[shown_split]
    names = collect_names(read_concepts(split))
    rows = random.Random(seed).sample(range(len(split)), NUM_SCENES_SHOWN)
    scenes = split.select(rows)
    tags = best_tags(model, processor, scenes, names, [scene_metrics.TEMPLATE])
    plot_scenes(scenes, tags, len(names), output_dir / "contact_sheet.png")
    scene = max(scenes, key=lambda row: len(row["concepts"]))
    codes = matches[shown_split].list_best(NUM_CODES_SHOWN) or None
    return results, Shown(scene["image"], "unseen_scene.png", scene["concepts"], names, scene_metrics.TEMPLATE, codes)


def report_on_drawings(
    model: PreTrainedModel, processor: ProcessorMixin, splits: DatasetDict, folder: str, seed: int, output_dir: Path
) -> tuple[dict, Shown]:
    """As `report_on_scenes`, for drawings."""
    concepts, results, predictions = naming.all_concepts(splits), {}, {}
    for split in [split for split in splits if split.startswith("test")]:
        results[split], predictions[split] = naming.evaluate_drawings(model, processor, splits, split, concepts, seed)
        rows = naming.list_naming_rows(results[split], splits[split], len(concepts))
        print("\n" + format_table(f"{len(splits[split])} drawings never seen ({split})", rows))
    rows = random.Random(seed).sample(range(len(splits["test"])), NUM_DRAWINGS_SHOWN)
    plot_drawings(splits["test"], predictions["test"], rows, output_dir / "contact_sheet.png")
    drawing, names = splits["test"][rows[0]], sorted({name for name, _ in concepts.values()})
    return results, Shown(drawing["image"], "held_out_drawing.png", [drawing["caption"]], names, "{}", None)


def use(model: Path, shown: Shown, seed: int) -> None:
    """Ask the saved model what is in an image, as anyone would."""
    path, names = model / shown.file, ", ".join(shown.true_names)
    shown.image.save(path)
    others = [name for name in shown.names if name not in shown.true_names]
    labels = shown.true_names + random.Random(seed).sample(others, NUM_LABELS - len(shown.true_names))
    print(f"\nThe saved model, loaded by pipeline in a process of its own, on {path} ({names}):", flush=True)
    subprocess.run([sys.executable, "-c", USE, str(model), str(path), shown.template, *labels], check=True)


def run_demo(arguments: DemoArguments) -> None:
    """All of it, from the data to the answers of the saved model."""
    name = "scenes" if arguments.images == "scenes" else "emoji"
    config = CONFIGS / f"{name}_{arguments.styles}_styles.json"
    flags = []
    if arguments.smoke:
        paths = json.loads(config.read_text(encoding="utf-8"))
        flags = [*SMOKE_FLAGS, "--output_dir", f"{paths['output_dir']}_smoke"]
        flags += ["--dataset", f"{paths['dataset']}_smoke"] if arguments.images == "scenes" else []
    run_arguments = parse_arguments(PRETRAINING, [str(config), *flags])
    model_arguments, data_arguments, training_arguments, _ = run_arguments
    seed, output_dir = training_arguments.seed, Path(training_arguments.output_dir)

    splits = prepare(arguments, model_arguments, data_arguments)
    trainer = train(*run_arguments)
    seconds = next(entry["train_runtime"] for entry in trainer.state.log_history if "train_runtime" in entry)
    print(
        f"\nTrained {trainer.state.global_step} steps in {seconds:.0f} seconds on {torch.get_num_threads()} threads."
    )
    plot_loss_curve(trainer.state.log_history, output_dir / "loss_curve.png")
    copy_credits(data_arguments.dataset, output_dir)

    model, processor = load_model(str(output_dir), "cpu")
    report_on = report_on_scenes if arguments.images == "scenes" else report_on_drawings
    results, shown = report_on(model, processor, splits, data_arguments.dataset, seed, output_dir)
    report = {
        "config": config.name,
        "seed": seed,
        "steps": trainer.state.global_step,
        "training_seconds": seconds,
        "num_threads": torch.get_num_threads(),
        "results": results,
    }
    (output_dir / "results.json").write_text(json.dumps(report, indent=2) + "\n")

    gallery = output_dir / "gallery"
    if gallery.exists():  # of an earlier run
        shutil.rmtree(gallery)
    visualize(
        VisualizationArguments(
            model=str(output_dir),
            device="cpu",
            dataset=data_arguments.dataset,
            split=next(iter(results)),
            output_dir=str(gallery),
            category_column="category" if arguments.images == "drawings" else None,
            figure_codes=shown.codes,
            seed=seed,
        )
    )
    use(output_dir, shown, seed)
    print(
        f"\nWritten to {output_dir}: the model, results.json, loss_curve.png, contact_sheet.png, gallery/index.html, "
        "gallery/figures"
    )
