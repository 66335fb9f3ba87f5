"""Config files and the flags that override them; commands that start at once and refuse in one line."""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

import run_scripts
from run_scripts.arguments import merge, parse_arguments, resolve_config, run_command
from run_scripts.training.arguments import FINE_TUNING


ROOT = Path(run_scripts.__file__).parents[1]
# Each file that can be run, but for benchmarks, which are not for users.
COMMANDS = sorted(
    f"{path.parent.name}.{path.stem}"
    for folder in ("run_scripts", "conversion")
    for path in (ROOT / folder).glob("*.py")
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    and path.stem not in ("run_demo", "run_zero_shot", "prepare_scenes")
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


def test_the_record_of_a_run_is_a_config_that_runs_it_again(tmp_path):
    argv = ["--model", "base", "--task", "contrastive", "--dataset", "data", "--validation_share", "0.2"]
    argv += ["--augmentation", '{"RandomHorizontalFlip": {"p": 0.5}}', "--use_cpu", "--output_dir", str(tmp_path)]
    first = parse_arguments(FINE_TUNING, [*argv, "--learning_rate", "0.25", "--lr_scheduler_type", "cosine"])
    record = write(tmp_path / "run.json", resolve_config(*first))
    again = parse_arguments(FINE_TUNING, [record])
    assert first[:2] == again[:2] and first[2].to_dict() == again[2].to_dict()


def test_merge_is_that_of_json_merge_patches():
    target = {"a": "b", "c": {"d": "e", "f": "g"}}
    assert merge(target, {"a": "z", "c": {"f": None}}) == {"a": "z", "c": {"d": "e"}}  # the example of RFC 7396
    assert target == {"a": "b", "c": {"d": "e", "f": "g"}}


def test_help_of_every_command_comes_before_anything_heavy():
    code = """
import runpy, sys
commands, heavy = sys.argv[1].split(), set(sys.argv[2].split())
for command in commands:
    sys.argv = [command, *(["retrieval"] if command.endswith("run_evaluation") else []), "--help"]
    try:
        runpy.run_module(command, run_name="__main__", alter_sys=True)
    except SystemExit as stopped:
        assert not stopped.code, command
    assert not heavy & set(sys.modules), f"{command} --help imports {heavy & set(sys.modules)}"
"""
    heavy = ["torch", "datasets", "accelerate", "transformers.trainer", "transformers.modeling_utils", "gradio"]
    heavy += ["kornia", "matplotlib.pyplot", "scipy", "sklearn", "networkx", "faiss", "onnxruntime"]
    argv = [sys.executable, "-c", code, " ".join(COMMANDS), " ".join(heavy)]
    subprocess.run(argv, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
