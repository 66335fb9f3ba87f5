"""Config files and the flags that override them; commands that start at once and refuse in one line."""

import json
import logging
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import torch.distributed as dist

import run_scripts
from run_scripts.arguments import check_output_file, merge, parse_arguments, resolve_config, run_command
from run_scripts.evaluation.arguments import TASKS
from run_scripts.training.arguments import FINE_TUNING


ROOT = Path(run_scripts.__file__).parents[1]
# Each file that can be run, but for benchmarks, which are not for users.
COMMANDS = sorted(
    f"{path.parent.name}.{path.stem}"
    for folder in ("run_scripts", "conversion")
    for path in (ROOT / folder).glob("*.py")
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
)


@dataclass
class Size:
    width: int
    model: dict | str | None = None
    shape: Literal["circle", "square"] = "circle"


@dataclass
class Names:
    names: list[str] = field(default_factory=list)
    is_loud: bool = True

    def __post_init__(self):
        if "nobody" in self.names:
            raise ValueError("names must not\nhold 'nobody'")


def write(path: Path, config) -> str:
    path.write_text(json.dumps(config))
    return str(path)


def test_later_files_and_flags_override_what_comes_before(tmp_path):
    (tmp_path / "base").mkdir()
    write(
        tmp_path / "base" / "base.json", {"width": 1, "names": ["a"], "model": {"depth": 1, "sizes": [1, 2], "x": 0}}
    )
    child = write(
        tmp_path / "child.json", {"extends": "base/base.json", "width": 2, "model": {"sizes": [3], "x": None}}
    )
    small = write(tmp_path / "small.json", {"shape": "square", "names": None})
    assert parse_arguments((Size, Names), [child]) == (Size(2, {"depth": 1, "sizes": [3]}), Names(["a"]))
    argv = [child, small, "--width", "3", "--model", '{"depth": 5}', "--no_is_loud"]
    model = {"depth": 5, "sizes": [3]}
    assert parse_arguments((Names, Size), argv) == (Names([], is_loud=False), Size(3, model, "square"))


@pytest.mark.parametrize(
    "config, message",
    [
        ({"width": 1, "widht": 2}, "config.json has .'widht'., which are no arguments"),
        ({"width": 1, "shape": "star"}, "shape must be one of .'circle', 'square'., got 'star'"),
        ({"width": 1, "names": "a"}, "names must be a list, got 'a'"),
        ({"extends": "config.json"}, "extends itself"),
        ({"extends": "missing.json"}, "missing.json cannot be read"),
        ({"extends": ["base.json"]}, "extends must name one file, got .'base.json'."),
        ([1], "must hold a JSON object"),
    ],
)
def test_wrong_configs_are_refused(tmp_path, config, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments((Size, Names), [write(tmp_path / "config.json", config)])


@pytest.mark.parametrize(
    "argv, status, message",
    [
        (["--width", "1", "--hight", "2"], 2, "unrecognized arguments: --hight 2"),
        (["--names", "a"], 2, "the following arguments are required: --width"),
        (["--width", "1", "--names", "nobody"], 1, "names must not hold 'nobody'"),
    ],
)
def test_refusals_are_one_line(argv, status, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_command(print, Size, Names, argv=argv)
    said = capsys.readouterr().err if status == 2 else stopped.value.code
    assert said.startswith("error: ") and message in said and "\n" not in said.rstrip()
    assert stopped.value.code == 2 or status == 1  # a text is printed to stderr, with status 1


def test_nothing_is_printed_before_a_refusal(tmp_path, caplog, capsys):
    def refuse(size: Size) -> None:
        logging.getLogger("huggingface_hub").warning("Retrying in 1s [Retry 1/5].")
        raise ValueError("size must be right")

    with pytest.raises(SystemExit, match="^error: size must be right$"):
        run_command(refuse, Size, argv=[write(tmp_path / "config.json", {"width": 1})])
    assert not caplog.records and not any(capsys.readouterr())


@pytest.mark.parametrize("path", ["", "file/below/x.png", "file"])
def test_a_file_that_cannot_be_written_is_refused(path, tmp_path):
    (tmp_path / "file").touch()
    if path == "file":
        check_output_file("output", tmp_path / path)
        check_output_file("output", tmp_path / "new" / "folder" / "x.png")
    else:
        with pytest.raises(ValueError, match=f"output must be a file that can be written, got '{tmp_path / path}'"):
            check_output_file("output", tmp_path / path)


def test_a_command_ends_its_group_of_processes(tmp_path):
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    run_command(print, Size, argv=["--width", "1"])
    assert not dist.is_initialized()


def test_the_record_of_a_run_is_a_config_that_runs_it_again(tmp_path):
    argv = ["--model", "base", "--task", "contrastive", "--dataset", "data", "--validation_share", "0.2"]
    argv += ["--augmentation", '{"RandomHorizontalFlip": {"p": 0.5}}', "--use_cpu", "--output_dir", str(tmp_path)]
    argv += ["--learning_rate", "0.25", "--lr_scheduler_type", "cosine", "--hub_token", "secret"]
    first = parse_arguments(FINE_TUNING, argv)
    config = resolve_config(*first)
    assert config["learning_rate"] == 0.25 and "weight_decay" not in config and "hub_token" not in config
    again = parse_arguments(FINE_TUNING, [write(tmp_path / "arguments.json", config)])
    assert first[:2] == again[:2] and first[2].to_dict() == again[2].to_dict()  # which hides tokens


def test_merge_is_that_of_json_merge_patches():
    target = {"a": "b", "c": {"d": "e", "f": "g"}}
    assert merge(target, {"a": "z", "c": {"f": None}}) == {"a": "z", "c": {"d": "e"}}  # the example of RFC 7396
    assert target == {"a": "b", "c": {"d": "e", "f": "g"}}


# One name for one thing: what the flags of all commands are called, and what they must not be called.
SYNONYMS = {
    "model": "model_name model_path model_id model_name_or_path clip folder pretrained",
    "dataset": "data data_dir data_path dataset_name kmeans_dataset train_dataset",
    "config_name": "dataset_config dataset_config_name subset",
    "split": "dataset_split eval_split test_split kmeans_split",
    "validation_split": "val_split eval_split",
    "train_split": "training_split",
    "image_column": "image_key images_column picture_column",
    "caption_column": "caption_key captions_column text_column",
    "label_column": "label_key labels_column class_column",
    "device": "use_cuda cuda gpu device_name",
    "output_dir": "out out_dir output_folder output_path save_dir",
    "batch_size": "num_images_per_batch bs",
    "seed": "random_seed",
}


@pytest.fixture(scope="module")
def flags() -> dict[str, set[str]]:
    """What `--help` of every command lists, after which nothing heavy has been imported."""
    code = """
import contextlib, io, json, re, runpy, sys
commands, heavy, flags = json.loads(sys.argv[1]), set(sys.argv[2:]), {}
for command in commands:
    sys.argv = [*command.split(), "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        except SystemExit as stopped:
            assert not stopped.code, command
    assert not heavy & set(sys.modules), f"{command} --help imports {heavy & set(sys.modules)}"
    flags[command] = re.findall(r"^  --([a-z_]+)", printed.getvalue(), re.M)
print(json.dumps(flags))
"""
    heavy = ["torch", "datasets", "accelerate", "transformers.trainer", "transformers.modeling_utils", "gradio"]
    heavy += ["cv2", "matplotlib.pyplot", "scipy", "sklearn", "networkx", "faiss", "onnxruntime"]
    commands = [*COMMANDS, *(f"run_scripts.run_evaluation {task}" for task in TASKS)]
    argv = [sys.executable, "-c", code, json.dumps(commands), *heavy]
    printed = subprocess.run(argv, check=True, cwd=ROOT, capture_output=True, text=True).stdout
    return {command: set(names) for command, names in json.loads(printed).items()}


def test_help_of_every_command_comes_before_anything_heavy(flags):
    assert {"model", "device", "output_dir"} <= flags["run_scripts.run_visualization"]
    assert {"model", "dataset", "split"} <= flags["run_scripts.run_evaluation retrieval"]
    assert set(COMMANDS) <= set(flags)


def test_the_same_thing_has_the_same_flag_in_every_command(flags):
    wrong = [
        f"{command} --{synonym}: must be --{name}"
        for command, names in flags.items()
        for name, synonyms in SYNONYMS.items()
        for synonym in names & set(synonyms.split())
    ]
    assert not wrong
