# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""A study: variants of a model, each tuned by the same number of trials, then trained with several seeds and tested.

Each run is one JSON file in `output_dir/runs`, and one that is there already is not run again.
"""

import hashlib
import importlib.metadata
import json
import logging
import platform
import statistics
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from datasets import Dataset, DatasetDict, load_from_disk
from PIL import Image
from transformers import PreTrainedModel, TrainerCallback, set_seed

from modeling_fdt import FDTConfig, FDTImageProcessor, FDTModel, FDTProcessor, FDTTokenizer
from modeling_fdt.towers_fdt import get_context_length
from run_scripts.data.batches import ContrastiveCollator
from run_scripts.data.files import format_markdown_table
from run_scripts.data.source import check_columns
from run_scripts.evaluation.inputs import describe_data, read_images
from run_scripts.evaluation.metrics import chance_recall_of
from run_scripts.evaluation.naming import all_concepts, evaluate_naming
from run_scripts.evaluation.results import PACKAGES, find_commit
from run_scripts.training.arguments import StudyArguments, slug
from run_scripts.training.baselines import ControlConfig, ControlModel
from run_scripts.training.trainer import FDTTrainer, FDTTrainingArguments


logger = logging.getLogger(__name__)

MODELS = {"fdt": (FDTConfig, FDTModel), "control": (ControlConfig, ControlModel)}
TEST_SPLITS = {"test": "unseen styles, seen concepts", "test_held_out": "unseen styles, unseen concepts"}
SPLITS = ("train", "validation", *TEST_SPLITS)

# What the tables show, by heading.
SHARES = {
    "top-1": "top_1",
    "top-5": "top_5",
    "image to text R@1": "image_to_text_R@1",
    "image to text R@5": "image_to_text_R@5",
    "text to image R@1": "text_to_image_R@1",
    "text to image R@5": "text_to_image_R@5",
    "category": "category",
}
CODES = {
    "active per image": "active_per_image",
    "active per caption": "active_per_caption",
    "effective per image": "effective_per_image",
    "dead": "dead_codes",
}
PLOTTED = "image_to_text_R@5"


@dataclass(frozen=True)
class Run:
    """One training: a trial of a variant, or, in full and with another seed, its best trial."""

    variant: str
    trial: int
    seed: int
    is_tuning: bool

    @property
    def name(self) -> str:
        return f"{slug(self.variant)}-trial{self.trial}-seed{self.seed}"


@dataclass
class Study:
    """A checked study with its data, ready to run.

    Attributes:
        arguments, training_arguments: as given.
        collator: rows to inputs; its processor is that of all variants.
        dataset: the four splits.
        pictures: by split, each drawing at the size that the towers take, in memory.
        concepts: name and category of every concept, the candidates of zero-shot classification.
        data_sha256: of all drawings, captions and categories.
    """

    arguments: StudyArguments
    training_arguments: FDTTrainingArguments
    collator: ContrastiveCollator
    dataset: DatasetDict
    pictures: dict[str, list[Image.Image]]
    concepts: dict[str, tuple[str, int]]
    data_sha256: str

    @property
    def output_dir(self) -> Path:
        return Path(self.training_arguments.output_dir)

    def settings(self, run: Run) -> dict:
        """All that decides the outcome of a run, as JSON."""
        arguments, variant = self.arguments, self.arguments.variants[run.variant]
        training_arguments = self.build_training_arguments(run).to_dict()
        return {
            "model": variant["model"],
            "model_config": arguments.merge_model_config(run.variant, run.trial),
            "image_processor_config": arguments.image_processor_config,
            "caption_column": arguments.caption_column,
            "distinct_column": arguments.distinct_column,
            "augmentation": arguments.augmentation,
            "training_arguments": {k: v for k, v in training_arguments.items() if not k.endswith("_dir")},
            "data_sha256": self.data_sha256,
        }

    def build_training_arguments(self, run: Run) -> FDTTrainingArguments:
        trial = self.arguments.variants[run.variant]["trials"][run.trial]
        return replace(
            self.training_arguments,
            output_dir=str(self.output_dir / "runs" / run.name),
            seed=run.seed,
            max_steps=self.arguments.tuning_steps if run.is_tuning else self.training_arguments.max_steps,
            **{name: value for name, value in trial.items() if name != "model_config"},
        )


def build_config(arguments: StudyArguments, variant: str, trial: int) -> FDTConfig | ControlConfig:
    """The configuration of a variant's model in one of its trials."""
    return MODELS[arguments.variants[variant]["model"]][0](**arguments.merge_model_config(variant, trial))


def check_trials(arguments: StudyArguments) -> None:
    """Raise a ValueError for a trial whose model or training arguments would be refused when its turn comes."""
    trainable = {argument.name for argument in fields(FDTTrainingArguments)} - {"seed", "max_steps", "output_dir"}
    for name, variant in arguments.variants.items():
        if variant["model"] not in MODELS:
            raise ValueError(f"model of variant {name!r} must be one of {list(MODELS)}, got {variant['model']!r}")
        for number, trial in enumerate(variant["trials"]):
            unknown = sorted(set(trial) - trainable - {"model_config"})
            if unknown:
                raise ValueError(f"trial {number} of variant {name!r} has {unknown}, which a trial cannot try")
            build_config(arguments, name, number)


def prepare_study(arguments: StudyArguments, training_arguments: FDTTrainingArguments) -> Study:
    """Check what can be checked before training, and bring all pictures to the towers' size.

    Raises:
        ValueError: the data set, one of its splits or one of its columns is missing, the augmentation is unknown,
            max_steps is not given, or a trial's training arguments are refused.
    """
    if training_arguments.max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {training_arguments.max_steps}")
    check_trials(arguments)
    if not (Path(arguments.dataset) / "dataset_dict.json").exists():
        raise ValueError(
            f"dataset={arguments.dataset!r} is no folder written by save_to_disk; `python -m "
            f"run_scripts.prepare_emoji_data --styles all --output_dir {arguments.dataset}` makes the emoji's"
        )
    dataset = load_from_disk(arguments.dataset)
    if not set(SPLITS) <= set(dataset):
        raise ValueError(f"dataset={arguments.dataset!r} must have the splits {SPLITS}, got {sorted(dataset)}")
    image_column, caption_column = arguments.image_column, arguments.caption_column
    columns = [image_column, caption_column, "concept", "caption", "category"]
    for split in SPLITS:
        check_columns(dataset[split], **dict(zip(columns, columns, strict=True)))
        check_columns(dataset[split], distinct_column=arguments.distinct_column)

    text_config = build_config(arguments, next(iter(arguments.variants)), 0).text_config
    processor = FDTProcessor(
        image_processor=FDTImageProcessor(**arguments.image_processor_config),
        tokenizer=FDTTokenizer(model_max_length=get_context_length(text_config)),
    )
    digests = [describe_data(arguments.dataset, split, dataset[split], columns)["sha256"] for split in SPLITS]
    study = Study(
        arguments=arguments,
        training_arguments=training_arguments,
        collator=ContrastiveCollator(processor, image_column, caption_column, arguments.augmentation),
        dataset=dataset,
        pictures={
            split: shrink(read_images(dataset[split], image_column), processor.image_processor) for split in SPLITS
        },
        concepts=all_concepts(dataset),
        data_sha256=hashlib.sha256("".join(digests).encode()).hexdigest(),
    )
    for variant, fields_of_variant in arguments.variants.items():
        for number in range(len(fields_of_variant["trials"])):
            study.build_training_arguments(Run(variant, number, arguments.tuning_seed, is_tuning=True))
    return study


def shrink(images: Iterable[Image.Image], image_processor: FDTImageProcessor) -> list[Image.Image]:
    """Pictures as the processor resizes and crops them, so that it need not do so at every visit."""
    arrays = (image_processor(image, do_rescale=False, do_normalize=False)["pixel_values"][0] for image in images)
    return [Image.fromarray(array.transpose(1, 2, 0)) for array in arrays]


def with_pictures(dataset: Dataset, pictures: list[Image.Image], image_column: str) -> Dataset:
    """The data set with the given pictures, which stay in memory, in place of its own."""

    def look_up(batch: dict[str, list]) -> dict[str, list]:
        return {**batch, image_column: [pictures[row] for row in batch["row"]]} if "row" in batch else batch

    dataset = dataset.remove_columns(image_column).add_column("row", list(range(len(dataset))))
    return dataset.with_transform(look_up)


class StepTimer(TrainerCallback):
    """Takes the processor's time of every step: forward, backward and optimiser, without preparing the data.

    Unlike the time on the wall it hardly depends on what else the machine does.
    """

    def __init__(self):
        self.seconds = []

    def on_step_begin(self, *args, **kwargs):
        self.started = time.process_time()

    def on_step_end(self, *args, **kwargs):
        self.seconds.append(time.process_time() - self.started)


def train_variant(study: Study, run: Run) -> tuple[PreTrainedModel, dict]:
    """Train one model; what it cost comes with it."""
    set_seed(run.seed)
    model_class = MODELS[study.arguments.variants[run.variant]["model"]][1]
    model = model_class(build_config(study.arguments, run.variant, run.trial))
    # Of no effect but speed: convolutions on a CPU take about two thirds of the time.
    model.vision_tower.to(memory_format=torch.channels_last)
    timer = StepTimer()
    trainer = FDTTrainer(
        model=model,
        args=study.build_training_arguments(run),
        data_collator=study.collator,
        train_dataset=with_pictures(study.dataset["train"], study.pictures["train"], study.arguments.image_column),
        distinct_column=study.arguments.distinct_column,
        callbacks=[timer],
    )
    loss = trainer.train().training_loss
    digest = hashlib.sha256()
    for name, weights in sorted(model.state_dict().items()):
        digest.update(name.encode() + weights.cpu().contiguous().numpy().tobytes())
    return model.eval(), {
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "cpu_seconds_per_step": statistics.median(timer.seconds),
        "mean_loss": loss,
        "weights_sha256": digest.hexdigest(),
    }


def evaluate_splits(study: Study, model: PreTrainedModel, splits: list[str]) -> dict[str, dict[str, float | None]]:
    """What `evaluate_naming` finds on each of the splits; metrics of codes are None for a model without codes."""
    results = {}
    for split in splits:
        shown, pictures = study.dataset[split]["concept"][:], study.pictures[split]
        metrics, _ = evaluate_naming(model, study.collator.processor, pictures, shown, study.concepts, seed=0)
        results[split] = {
            **dict.fromkeys(CODES.values()),
            **{name: metric.value for name, metric in metrics.items()},
        }
    return results


def validation_rsum(result: dict) -> float:
    """What trials are judged by."""
    return result["results"]["validation"]["rsum"]


def run_once(study: Study, run: Run, command: str) -> dict:
    """Train, test and write down one run, or read what was written down before.

    Raises:
        ValueError: what was written down had other settings.
    """
    path, settings = study.output_dir / "runs" / f"{run.name}.json", study.settings(run)
    if path.exists():
        result = json.loads(path.read_text(encoding="utf-8"))
        differing = [name for name, value in settings.items() if value != result["settings"].get(name)]
        if differing:
            raise ValueError(f"{path} has other {differing}: remove it, or give another output_dir")
        return result
    started = time.perf_counter()
    model, costs = train_variant(study, run)
    results = evaluate_splits(study, model, ["validation"] if run.is_tuning else ["validation", *TEST_SPLITS])
    result = {
        **asdict(run),
        "results": results,
        **costs,
        "seconds": time.perf_counter() - started,
        "settings": settings,
        "command": command,
        "commit": find_commit(),
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in PACKAGES},
        },
        "num_threads": torch.get_num_threads(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written beside and renamed, so that a run that is stopped leaves nothing that looks finished.
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    unfinished.rename(path)
    logger.info("%s: rsum on validation %.1f, %.0f seconds", run.name, validation_rsum(result), result["seconds"])
    return result


def run_all(study: Study, command: str) -> tuple[dict[str, list[dict]], dict[str, list[dict]]]:
    """By variant, the results of its trials, and of its best trial with every seed."""
    arguments, trials, finals = study.arguments, {}, {}
    for name, variant in arguments.variants.items():
        runs = [Run(name, number, arguments.tuning_seed, is_tuning=True) for number in range(len(variant["trials"]))]
        trials[name] = [run_once(study, run, command) for run in runs]
    # Seed by seed: a study that is stopped has compared all variants on its first seeds.
    for seed in arguments.seeds:
        for name, results in trials.items():
            best = max(results, key=validation_rsum)["trial"]
            finals.setdefault(name, []).append(run_once(study, Run(name, best, seed, is_tuning=False), command))
    return trials, finals


def mean_and_deviation(values: list[float | None]) -> tuple[float, float] | None:
    """Mean and sample standard deviation, the latter 0 for a single value; None for values that are None."""
    if None in values:
        return None
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def format_variants(finals: dict[str, list[dict]], split: str, columns: dict[str, str]) -> str:
    """A Markdown table, one row for each variant with such a metric: mean ± standard deviation over the seeds.

    Args:
        finals: by variant, one result for each seed.
        split: of which.
        columns: names of metrics by their heading; shares are given in per cent, numbers of codes as they are.
    """
    rows = []
    for variant, results in finals.items():
        values = [[result["results"][split][metric] for result in results] for metric in columns.values()]
        summaries = [mean_and_deviation(numbers) for numbers in values]
        if None not in summaries:
            scales = [1 if metric.endswith(("_image", "_caption")) else 100 for metric in columns.values()]
            cells = [f"{s * mean:.1f} ± {s * std:.1f}" for s, (mean, std) in zip(scales, summaries, strict=True)]
            rows.append([variant, *cells])
    return format_markdown_table(["variant", *columns], rows)


def format_costs(finals: dict[str, list[dict]]) -> str:
    """A Markdown table of parameters and time, each also as a ratio to the first variant's."""
    headings, rows = ["variant", "parameters", "ratio", "CPU seconds per step", "ratio"], []
    costs = {
        variant: (results[0]["num_parameters"], statistics.median(r["cpu_seconds_per_step"] for r in results))
        for variant, results in finals.items()
    }
    first_parameters, first_seconds = next(iter(costs.values()))
    for variant, (parameters, seconds) in costs.items():
        ratios = (f"{parameters / first_parameters:.2f}", f"{seconds / first_seconds:.2f}")
        rows.append([variant, f"{parameters:,}", ratios[0], f"{seconds:.3f}", ratios[1]])
    return format_markdown_table(headings, rows)


def format_trials(trials: dict[str, list[dict]], variants: dict[str, dict]) -> str:
    """A Markdown table of all trials, the best of each variant in bold."""
    rows = []
    for variant, results in trials.items():
        best = max(results, key=validation_rsum)
        for result in results:
            tried = dict(variants[variant]["trials"][result["trial"]])
            tried = {**tried.pop("model_config", {}), **tried}
            score = f"{validation_rsum(result):.1f}"
            score = f"**{score}**" if result is best else score
            rows.append([variant, ", ".join(f"{k} {v}" for k, v in tried.items()), score])
    return format_markdown_table(["variant", "trial", "rsum on validation"], rows, num_left=2)


def plot_results(finals: dict[str, list[dict]], chances: dict[str, float], path: Path) -> None:
    """Recall on both test splits by variant, the mean as a bar and every seed as a dot, as PNG."""
    variants = list(finals)[::-1]
    is_control = [finals[variant][0]["settings"]["model"] == "control" for variant in variants]
    colors = ["tab:gray" if control else "tab:blue" for control in is_control]
    figure, panels = plt.subplots(1, 2, figsize=(9, 0.4 * len(variants) + 1.2), sharey=True, layout="constrained")
    for axes, (split, title) in zip(panels, TEST_SPLITS.items(), strict=True):
        values = [[100 * result["results"][split][PLOTTED] for result in finals[variant]] for variant in variants]
        axes.barh(variants, [statistics.mean(numbers) for numbers in values], color=colors, alpha=0.4)
        for row, numbers in enumerate(values):
            axes.plot(numbers, [row] * len(numbers), "o", color="black", markersize=3)
        axes.axvline(100 * chances[split], color="black", linestyle=":", linewidth=1)
        axes.set(title=title, xlabel="image to text R@5 (%), dotted: chance")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def report(study: Study, trials: dict[str, list[dict]], finals: dict[str, list[dict]]) -> str:
    """Write results.md and study.png, and return the text."""
    parts, chances = [], {}
    for split, title in TEST_SPLITS.items():
        drawings, concepts = study.dataset[split].num_rows, len(set(study.dataset[split]["concept"]))
        chances[split] = chance_recall_of(torch.ones(drawings, dtype=torch.long), concepts, 5)
        heading = f"{title}: {drawings:,} drawings of {concepts:,} concepts, seeds {study.arguments.seeds}"
        parts += [f"## {heading}", format_variants(finals, split, SHARES), format_variants(finals, split, CODES)]
    parts += ["## Cost", format_costs(finals), "## Trials", format_trials(trials, study.arguments.variants)]
    text = "\n\n".join(parts) + "\n"
    (study.output_dir / "results.md").write_text(text, encoding="utf-8")
    plot_results(finals, chances, study.output_dir / "study.png")
    return text


def run_study(arguments: StudyArguments, training_arguments: FDTTrainingArguments, command: str) -> None:
    """Run what has not been run, and print and write the report.

    Args:
        arguments, training_arguments: the study.
        command: which is written down with every run.
    """
    study = prepare_study(arguments, training_arguments)
    print(report(study, *run_all(study, command)))
