# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Arguments that commands share, and how a command reads its own: config files first, then flags that override them.

This module is light: a command imports it, tells its help and refuses wrong arguments before anything heavy is loaded.
"""

import json
import logging
import os
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

from transformers import HfArgumentParser


logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class CheckpointArguments:
    """A trained model, and where it runs."""

    model: str = field(metadata={"help": "Folder or Hub name of a checkpoint with its processor."})
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, ...; default: cuda where there is one."})


@dataclass(kw_only=True)
class SourceArguments:
    """Rows with images."""

    dataset: str = field(
        metadata={"help": "A folder of images or parquet files, one written by save_to_disk, or a name on the Hub."}
    )
    config_name: str | None = field(default=None, metadata={"help": "Configuration of a data set on the Hub."})
    split: str = field(default="test", metadata={"help": "Split to read."})
    image_column: str = field(default="image", metadata={"help": "Column of images."})


@dataclass(kw_only=True)
class PairArguments(SourceArguments):
    """Rows with images and their captions."""

    caption_column: str = field(
        default="caption", metadata={"help": "Column of captions: one string a row, or a list of them."}
    )


@dataclass(kw_only=True)
class TrainingDataArguments(PairArguments):
    """What to train on, and how an image is varied from visit to visit."""

    split: str = field(default="train", metadata={"help": "Split to train on."})
    validation_split: str | None = field(default=None, metadata={"help": "Split to evaluate on while training."})
    distinct_column: str | None = field(
        default=None, metadata={"help": "Column whose values must all differ within a global batch."}
    )
    augmentation: dict | str | None = field(
        default=None, metadata={"help": "Steps in their order, each with its arguments; see docs/training.md."}
    )

    def __post_init__(self):
        self.augmentation = parse_json("augmentation", self.augmentation)


@dataclass(kw_only=True)
class DataArguments(TrainingDataArguments):
    """Pairs to pretrain on, of a size that may call for a stream."""

    dataset: str = field(
        metadata={"help": "A folder of save_to_disk, what load_dataset takes, or tar shards: a/{000..331}.tar."}
    )
    streaming: bool = field(default=False, metadata={"help": "Read rows in passing; tar shards always are."})
    shuffle_buffer: int = field(default=2000, metadata={"help": "Pairs of a stream held to draw from, per worker."})
    max_broken_fraction: float = field(
        default=0.1, metadata={"help": "The run stops when a larger share of the data cannot be used."}
    )
    augment_on_device: bool = field(
        default=False, metadata={"help": "All steps but the crop on the training device, not by the workers."}
    )
    validation_dataset: str | None = field(
        default=None, metadata={"help": "Where validation_split is, if not in `dataset`."}
    )
    cache_features: str | None = field(
        default=None, metadata={"help": "Folder to keep the frozen towers' features in: no step runs a tower."}
    )

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.max_broken_fraction <= 1:
            raise ValueError(f"max_broken_fraction must be from 0 to 1, got {self.max_broken_fraction}")
        if self.shuffle_buffer < 1:
            raise ValueError(f"shuffle_buffer must be at least 1, got {self.shuffle_buffer}")
        if self.augment_on_device and self.augmentation is None:
            raise ValueError("augment_on_device needs augmentation, got none")
        if self.validation_dataset is not None and self.validation_split is None:
            raise ValueError(f"validation_dataset={self.validation_dataset!r} needs validation_split, got none")
        if is_tar_pattern(self.dataset):
            self._check_tar_options()
        if self.is_stream and self.distinct_column is not None:
            raise ValueError(f"distinct_column={self.distinct_column!r} needs rows to choose from, not a stream")

        if self.cache_features is not None:
            for name in ("streaming", "augmentation"):
                if getattr(self, name):
                    raise ValueError(f"cache_features keeps a data set's features: {name} must not be given")
            if is_tar_pattern(self.dataset):
                raise ValueError(f"cache_features needs rows, not a stream, got dataset={self.dataset!r}")

    @property
    def is_stream(self) -> bool:
        return self.streaming or is_tar_pattern(self.dataset)

    def _check_tar_options(self) -> None:
        for name, only in (("image_column", "image"), ("config_name", None), ("split", "train")):
            if getattr(self, name) != only:
                raise ValueError(f"{name} must be {only!r} with tar shards, got {getattr(self, name)!r}")
        if self.validation_split is not None and self.validation_dataset is None:
            raise ValueError(
                f"validation_split={self.validation_split!r} needs validation_dataset: tar shards have no splits"
            )


@dataclass(frozen=True)
class LateArguments:
    """A class of arguments whose import takes seconds: its flags are read when all others have been accepted.

    Attributes:
        preview: the part of its fields that `--help` lists, a dataclass.
        note: what `--help` says of the others.
        load: imports and returns the class.
    """

    preview: type
    note: str
    load: Callable[[], type]


def run_command(
    main: Callable[..., Any],
    *argument_classes: type | LateArguments,
    argv: Sequence[str] | None = None,
    defaults: Callable[[dict[str, Any], Sequence[str]], dict[str, Any]] = lambda config, flags: {},
    prog: str | None = None,
) -> None:
    """Parse the command line and run `main` with an object of each class; arguments as in `parse_arguments`.

    What is refused, by the parser or by `main`, is printed as one line; `python -X dev` shows where it was raised.

    Raises:
        SystemExit: with status 2 for unknown flags, and 1 where a ValueError, OSError or ImportError says why not.
    """
    logging.basicConfig(format="%(message)s")
    for name in ("bitsandbytes", "huggingface_hub"):  # a missing kernel, each new try: they bury what is refused
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in ("run_scripts", main.__module__):  # other packages' chatter stays out
        logging.getLogger(name).setLevel(logging.INFO)
    spec = sys.modules["__main__"].__spec__
    prog = f"python -m {spec.name}" if prog is None and spec is not None else prog
    try:
        main(*parse_arguments(argument_classes, sys.argv[1:] if argv is None else argv, defaults, prog))
    except (ValueError, OSError, ImportError) as error:
        if sys.flags.dev_mode:
            raise
        sys.exit(f"error: {' '.join(str(error).split())}")
    # Trainer leaves the group of processes open, and at exit gloo's threads then abort a process now and then.
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def parse_arguments(
    argument_classes: Sequence[type | LateArguments],
    argv: Sequence[str],
    defaults: Callable[[dict[str, Any], Sequence[str]], dict[str, Any]] = lambda config, flags: {},
    prog: str | None = None,
) -> tuple:
    """Dataclasses of arguments from config files, as many as the command line begins with, and the flags after them.

    Args:
        argument_classes: whose fields are the names of flags, and of what configs may hold.
        argv: `[config.json ...] [--flag value ...]`. What comes later overrides what comes before; of an object, as
            JSON, the members that it names (see `merge`).
        defaults: gives, for config and flags, what both override.
        prog: the command, for its help.

    Returns:
        An object of each class, in their order.

    Raises:
        ValueError: a config cannot be read or has an unknown name, or a class refuses a value.
        SystemExit: from argparse, for unknown or missing flags and for `--help`.
    """
    files, flags = split_configs(argv)
    config = {}
    for file in files:
        config = merge(config, read_config(find_config(file)))
    config = merge(defaults(config, flags), config)
    late = [group for group in argument_classes if isinstance(group, LateArguments)]
    early = [group for group in argument_classes if not isinstance(group, LateArguments)]
    if late and not {"-h", "--help"}.isdisjoint(flags):
        notes = "\n".join(group.note for group in late)
        _Parser([*early, *(group.preview for group in late)], config, prog=prog, epilog=notes).parse_args(["--help"])
    parser = _Parser(early, config, prog=prog)
    namespace, rest = parser.parse_known_args(flags)
    known = set(parser.known)
    objects = {group: parser.build(group, namespace) for group in early}
    if late:
        classes = {group: group.load() for group in late}
        parser = _Parser(list(classes.values()), config, prog=prog)
        namespace = parser.parse_args(rest)
        known |= parser.known
        objects |= {group: parser.build(cls, namespace) for group, cls in classes.items()}
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    unknown = sorted(set(config) - known)
    if unknown:
        raise ValueError(f"{', '.join(map(str, files))} has {unknown}, which are no arguments of this command")
    return tuple(objects[group] for group in argument_classes)


def build_arguments(argument_classes: Sequence[type | LateArguments], config: dict[str, Any]) -> tuple:
    """As `parse_arguments`, from a config alone."""
    return parse_arguments(argument_classes, [], lambda *_: config)


class _Parser(HfArgumentParser):
    """A parser of dataclasses with the defaults of a config. A flag of an object changes the members that it names."""

    def __init__(self, argument_classes: list[type], config: dict[str, Any], **kwargs):
        self.config, self.known = config, set()
        super().__init__(argument_classes, allow_abbrev=False, **kwargs)

    def add_argument(self, *names: str, **options: Any):
        name = names[0].removeprefix("--")
        if names[0] != "-h":
            self.known.add(name.removeprefix("no_"))
        value = self.config.get(name)
        if isinstance(value, dict) or options.get("type") is dict:
            options["type"] = lambda text: merge(value or {}, _parse_flag(name, text))
        if name in self.config:
            if "choices" in options and value not in options["choices"]:
                raise ValueError(f"{name} must be one of {list(options['choices'])}, got {value!r}")
            if options.get("nargs") == "+" and not isinstance(value, list):
                raise ValueError(f"{name} must be a list, got {value!r}")
            options.update(default=value, required=False)
        return super().add_argument(*names, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(
            2, f"error: {message}; `{self.prog} --help` lists the flags\n"
        )  # without argparse's list of them all

    def build(self, argument_class: type, namespace: Any) -> Any:
        """An object of one class."""
        names = [field.name for field in fields(argument_class) if field.init]
        return argument_class(**{name: getattr(namespace, name) for name in names})


def _parse_flag(name: str, text: str) -> dict:
    try:
        return parse_json(name, text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error


def split_configs(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The config files that a command line begins with, and its flags."""
    number = next((place for place, word in enumerate(argv) if not word.endswith(".json")), len(argv))
    return list(argv[:number]), list(argv[number:])


def find_config(path: str) -> Path:
    """The file of that name, or, away from the repository, the one of this package that the docs call by that name."""
    is_own = Path(path).is_relative_to("run_scripts/configs") and not Path(path).exists()
    return Path(__file__).parents[1] / path if is_own else Path(path)


def read_config(path: str | Path, children: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A JSON file of arguments, merged into the file that its `extends` names, relative to its own folder.

    Raises:
        ValueError: a file is missing, holds no JSON object, or extends itself or no file.
    """
    path = Path(path).resolve()
    if path in children:
        raise ValueError(f"config {path} extends itself")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"config {path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"config {path} must hold a JSON object, got {config!r:.100}")
    parent = config.pop("extends", None)
    if not isinstance(parent, str | None):
        raise ValueError(f"config {path}: extends must name one file, got {parent!r}")
    return config if parent is None else merge(read_config(path.parent / parent, (*children, path)), config)


def merge(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A config with changes: objects are changed member by member, null removes. Source: RFC 7396, but that an object
    where there was none is taken as it is, so that it can itself be changes."""
    merged = dict(config)
    for name, value in changes.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, dict) and isinstance(config.get(name), dict):
            merged[name] = merge(config[name], value)
        else:
            merged[name] = value
    return merged


def resolve_config(*arguments: Any) -> dict[str, Any]:
    """The arguments of a run that differ from the defaults, by name: a config that starts it again, without tokens."""
    config = {}
    for part in arguments:
        values = part.to_dict() if hasattr(part, "to_dict") else asdict(part)
        defaults = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(part)}
        config |= {name: value for name, value in values.items() if value != defaults[name]}
    return {name: value for name, value in config.items() if not name.endswith("_token")}


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


def check_output_file(name: str, path: str | Path) -> None:
    """Raise a ValueError where no file can be written, before the work whose results it is for."""
    folder = next((parent for parent in Path(path).absolute().parents if parent.exists()), Path(path))
    if Path(path).is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"{name} must be a file that can be written, got {str(path)!r}")


def is_tar_pattern(source: str) -> bool:
    """Whether a data set is named by its tar shards."""
    return source.startswith("pipe:") or source.endswith((".tar", ".tar.gz", ".tgz"))
