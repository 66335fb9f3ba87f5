# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Arguments of the tasks of evaluation, and the presets; light, so that help and refusals come at once."""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from run_scripts.arguments import CheckpointArguments, SourceArguments, check_output_file


PRESETS = json.loads(Path(__file__).with_name("presets.json").read_text(encoding="utf-8"))


@dataclass(kw_only=True)
class EvaluationArguments(CheckpointArguments, SourceArguments):
    """What every task needs."""

    preset: str | None = field(default=None, metadata={"help": "A known data set: see presets.json for the names."})
    dataset: str | None = field(
        default=None, metadata={"help": "A folder of save_to_disk, or what load_dataset takes; default: the preset's."}
    )
    batch_size: int = field(default=64, metadata={"help": "How many images or captions the model takes at once."})
    seed: int = field(default=42, metadata={"help": "Of everything that is drawn at random."})
    output: str | None = field(
        default=None, metadata={"help": "JSON file of the results; default: a name in outputs/evaluation."}
    )
    report: str | None = field(default=None, metadata={"help": "HTML file for a page with tables and plots."})

    def __post_init__(self):
        if self.dataset is None:
            raise ValueError("give dataset, or a preset that names one")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        for name in ("output", "report"):
            if getattr(self, name) is not None:
                check_output_file(name, getattr(self, name))


@dataclass(kw_only=True)
class CaptionTaskArguments(EvaluationArguments):
    """What tasks need that read all captions of an image."""

    caption_column: str = field(
        default="caption", metadata={"help": "Column of captions: lists, or strings with one caption a line."}
    )


@dataclass(kw_only=True)
class ConceptTaskArguments(EvaluationArguments):
    """What tasks need that ask for concepts by their names."""

    templates: str = field(
        default="bare",
        metadata={"help": "bare (the name alone), simple, open_clip, a template (`a {}`), or a file with one a line."},
    )


@dataclass(kw_only=True)
class ZeroShotArguments(EvaluationArguments):
    label_column: str = field(default="label", metadata={"help": "Column of classes: ClassLabel, names or numbers."})
    class_names: str | None = field(
        default=None, metadata={"help": "File with a name a line, or open_clip; default: the data's own names."}
    )
    templates: str = field(
        default="simple",
        metadata={"help": "bare, simple, open_clip, a template (`a {}`), or a file with one a line."},
    )
    metric: str = field(default="top_1", metadata={"help": "The metric that is cited for this data set."})


@dataclass(kw_only=True)
class RetrievalArguments(CaptionTaskArguments):
    merge_equal_captions: bool = field(
        default=False, metadata={"help": "Count equal captions as one, right for every image that has it."}
    )
    metric: str = field(default="rsum", metadata={"help": "The metric that is cited for this data set."})


@dataclass(kw_only=True)
class LinearProbeArguments(EvaluationArguments):
    label_column: str = field(default="label", metadata={"help": "Column of classes."})
    train_split: str = field(default="train", metadata={"help": "The split to fit on."})
    validation_split: str | None = field(
        default=None, metadata={"help": "The split that chooses the strength; default: a fifth of train_split."}
    )
    few_shot: list[int] = field(
        default_factory=list, metadata={"help": "Also with k training rows per class, for each k: 1 2 4 8 16."}
    )
    num_seeds: int = field(default=3, metadata={"help": "Draws for each number of few_shot."})
    metric: str = field(default="top_1", metadata={"help": "The metric that is cited for this data set."})

    def __post_init__(self):
        super().__post_init__()
        if any(shots < 1 for shots in self.few_shot) or self.num_seeds < 1:
            raise ValueError(f"few_shot and num_seeds must be at least 1, got {self.few_shot} and {self.num_seeds}")


@dataclass(kw_only=True)
class VQAArguments(EvaluationArguments):
    question_column: str = field(default="question", metadata={"help": "Column of questions."})
    answers_column: str = field(
        default="answers", metadata={"help": "Column of the annotators' answers: strings, or objects with `answer`."}
    )
    image_id_column: str | None = field(
        default=None, metadata={"help": "Column that tells equal images, which are then embedded once."}
    )
    answer_type_column: str | None = field(
        default=None, metadata={"help": "Column by which the accuracy is also given, e.g. yes/no, number, other."}
    )
    train_split: str = field(default="train", metadata={"help": "The split to fit on."})
    num_answers: int = field(default=3129, metadata={"help": "How many of the most frequent answers are classes."})
    hidden_dim: int = field(default=1024, metadata={"help": "Width of the probe's hidden layer."})
    num_epochs: int = field(default=20, metadata={"help": "How often the probe sees the training rows."})
    metric: str = field(default="vqa_accuracy", metadata={"help": "The metric that is cited for this data set."})


@dataclass(kw_only=True)
class CompletenessArguments(EvaluationArguments):
    caption_column: str = field(default="caption", metadata={"help": "Column of true captions, one string a row."})
    word_columns: list[str] = field(
        default_factory=list,
        metadata={"help": "Columns that list the objects, attributes, ... of each image; each is a kind of swap."},
    )
    negative_caption_column: str | None = field(
        default=None,
        metadata={"help": "Column of false captions; default: `negative_caption`, unless word_columns are given."},
    )
    kind_column: str | None = field(
        default=None, metadata={"help": "Column that says what was changed; default: `kind`, where there is one."}
    )
    image_folder: str | None = field(
        default=None,
        metadata={"help": "Folder of the images that SugarCrepe's files name; dataset is then the files' folder."},
    )
    metric: str = field(default="accuracy", metadata={"help": "The metric that is cited for this data set."})

    def __post_init__(self):
        super().__post_init__()
        if self.word_columns and self.negative_caption_column is not None:
            raise ValueError(
                "give either word_columns or negative_caption_column, got "
                f"word_columns={self.word_columns} and negative_caption_column={self.negative_caption_column!r}"
            )
        if not self.word_columns and self.negative_caption_column is None:
            self.negative_caption_column = "negative_caption"


@dataclass(kw_only=True)
class CodesArguments(CaptionTaskArguments):
    metric: str = field(default="active_per_image", metadata={"help": "The metric that is cited."})


@dataclass(kw_only=True)
class TaggingArguments(ConceptTaskArguments):
    train_split: str | None = field(
        default=None, metadata={"help": "Also tag by the most similar images of this split, by pixels: the control."}
    )
    metric: str = field(
        default="mean_average_precision", metadata={"help": "The metric that is cited for this data set."}
    )


@dataclass(kw_only=True)
class LocalizationArguments(ConceptTaskArguments):
    metric: str = field(default="pointing_game", metadata={"help": "The metric that is cited for this data set."})


@dataclass(kw_only=True)
class ConceptsArguments(ConceptTaskArguments):
    validation_split: str = field(
        default="validation", metadata={"help": "The split on which the code of each concept is chosen."}
    )
    metric: str = field(default="concept_named", metadata={"help": "The metric that is cited for this data set."})


@dataclass(kw_only=True)
class ReportArguments:
    """What the task `report` needs."""

    results: list[str] = field(metadata={"help": "JSON files of results, in the order of the page."})
    output: str = field(metadata={"help": "The HTML file to write."})

    def __post_init__(self):
        check_output_file("output", self.output)


TASKS = {
    "zero-shot-classification": ZeroShotArguments,
    "retrieval": RetrievalArguments,
    "linear-probe": LinearProbeArguments,
    "vqa": VQAArguments,
    "completeness": CompletenessArguments,
    "codes": CodesArguments,
    "tagging": TaggingArguments,
    "localization": LocalizationArguments,
    "concepts": ConceptsArguments,
    "report": ReportArguments,
}


def preset_arguments(task: str, preset: str | None, dataset: str | None) -> dict[str, Any]:
    """What a preset says of the flags of a task; nothing without a preset.

    Args:
        task: one of `TASKS`.
        preset: its name.
        dataset: the user's own copy of the data, to which the preset's `config_name` does not apply.

    Raises:
        ValueError: there is no such preset for the task.
    """
    if preset is None:
        return {}
    if preset not in PRESETS or task not in PRESETS[preset]["tasks"]:
        known = sorted(name for name, content in PRESETS.items() if task in content["tasks"])
        raise ValueError(f"preset={preset!r} is not one for {task}; there are {known}")
    flags = {flag.name for flag in fields(TASKS[task])}
    if dataset is not None:
        flags -= {"dataset", "config_name"}
    return {flag: value for flag, value in PRESETS[preset]["arguments"].items() if flag in flags}
