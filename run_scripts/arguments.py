# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Arguments that several commands share, and how they are read: flags, or one JSON file of the same names."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser


@dataclass
class DataArguments:
    """What to train on, and how a picture is varied from visit to visit."""

    dataset: str = field(
        metadata={"help": "A folder of save_to_disk, what load_dataset takes, or tar shards: a/{000..331}.tar."}
    )
    config_name: str | None = field(default=None, metadata={"help": "Configuration of a data set on the Hub."})
    split: str = field(default="train", metadata={"help": "Split to train on."})
    streaming: bool = field(default=False, metadata={"help": "Read rows in passing; tar shards always are."})
    shuffle_buffer: int = field(default=2000, metadata={"help": "Pairs of a stream held to draw from, per worker."})
    image_column: str = field(default="image", metadata={"help": "Column of pictures."})
    caption_column: str = field(
        default="caption", metadata={"help": "Column of captions. Of a list, one is drawn at every visit."}
    )
    distinct_column: str | None = field(
        default=None, metadata={"help": "Column whose values must all differ within a global batch."}
    )
    max_broken_fraction: float = field(
        default=0.1, metadata={"help": "The run stops when a larger share of the data cannot be used."}
    )
    augmentation: dict | str | None = field(
        default=None,
        metadata={"help": "Classes of kornia.augmentation in their order, each with its arguments."},
    )
    augment_on_device: bool = field(
        default=False, metadata={"help": "All steps but the crop on the training device, not by the workers."}
    )
    eval_split: str | None = field(default=None, metadata={"help": "Split for retrieval while training."})
    eval_dataset: str | None = field(default=None, metadata={"help": "Where eval_split is, if not in `dataset`."})

    def __post_init__(self):
        self.augmentation = parse_json("augmentation", self.augmentation)
        if not 0 <= self.max_broken_fraction <= 1:
            raise ValueError(f"max_broken_fraction must be from 0 to 1, got {self.max_broken_fraction}")
        if self.shuffle_buffer < 1:
            raise ValueError(f"shuffle_buffer must be at least 1, got {self.shuffle_buffer}")
        if self.augment_on_device and self.augmentation is None:
            raise ValueError("augment_on_device needs augmentation, got none")
        if self.eval_dataset is not None and self.eval_split is None:
            raise ValueError(f"eval_dataset={self.eval_dataset!r} needs eval_split, got none")
        if is_tar_pattern(self.dataset):
            self._check_tar_options()
        if self.is_stream and self.distinct_column is not None:
            raise ValueError(f"distinct_column={self.distinct_column!r} needs rows to choose from, not a stream")

    @property
    def is_stream(self) -> bool:
        return self.streaming or is_tar_pattern(self.dataset)

    def _check_tar_options(self) -> None:
        for name, only in (("image_column", "image"), ("config_name", None), ("split", "train")):
            if getattr(self, name) != only:
                raise ValueError(f"{name} must be {only!r} with tar shards, got {getattr(self, name)!r}")
        if self.eval_split is not None and self.eval_dataset is None:
            raise ValueError(f"eval_split={self.eval_split!r} needs eval_dataset: tar shards have no splits")


def parse_file_or_flags(argument_classes: tuple[type, ...], argv: list[str]) -> tuple:
    """Dataclasses of arguments from one JSON file, or from flags; an unknown name is an error either way."""
    parser = HfArgumentParser(argument_classes, allow_abbrev=False)
    if not (argv and argv[0].endswith(".json")):
        return parser.parse_args_into_dataclasses(argv)
    if len(argv) > 1:
        raise ValueError(f"give one JSON file or flags, not both, got {argv[0]} and {argv[1:]}")
    return parser.parse_json_file(find_config(argv[0]))


def find_config(path: str) -> Path:
    """The file of that name, or, away from the repository, the one of this package that the docs call by that name."""
    is_own = Path(path).is_relative_to("run_scripts/configs") and not Path(path).exists()
    return Path(__file__).parents[1] / path if is_own else Path(path)


def parse_json(name: str, value: dict | str | None) -> dict | None:
    """A dict as it is, or as JSON text, the form that flags have."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"{name} must be a JSON object, got {value!r}: {error}") from error
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{name} must be a JSON object, got {value!r}")
    return value


def is_tar_pattern(source: str) -> bool:
    """Whether a data set is named by its tar shards."""
    return source.startswith("pipe:") or source.endswith((".tar", ".tar.gz", ".tgz"))
