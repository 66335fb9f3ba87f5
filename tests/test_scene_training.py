# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Training on scenes: step t sees scenes t * B to (t + 1) * B - 1, on any number of workers, killed or not."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from transformers import DefaultFlowCallback, TrainerCallback

from run_scripts.arguments import parse_arguments
from run_scripts.data.scene_splits import write_scenes
from run_scripts.data.scenes import SceneComposer, SceneDataset
from run_scripts.training.arguments import PRETRAINING
from run_scripts.training.pretraining import train


BATCH_SIZE, NUM_STEPS = 4, 8
NUM_SCENES = 3 * BATCH_SIZE + 1  # to an epoch, which has three steps then


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "scenes"
    write_scenes(str(folder), image_size=48, num_scenes=8, num_false_captions=1)
    return folder


@pytest.fixture(autouse=True)
def epochs_of_three_steps(monkeypatch) -> None:
    monkeypatch.setattr(SceneDataset, "num_scenes", NUM_SCENES)


def note_scenes(patch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the scenes that this process makes from now on."""
    numbers, compose = [], SceneComposer.compose

    def note(self, index: int):
        numbers.append(index)
        return compose(self, index)

    patch.setattr(SceneComposer, "compose", note)
    return numbers


@pytest.fixture
def made(monkeypatch) -> list[int]:
    return note_scenes(monkeypatch)


class Killer(TrainerCallback):
    """Ends the process as nothing else does, when the step after a checkpoint is done."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def write_config(world: Path, output_dir: Path, **changes) -> Path:
    """A run of eight steps with a tiny model."""
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {
        "model_config": {
            "vision_config": {**tower, "image_size": 48, "patch_size": 24},
            "text_config": {**tower, "max_position_embeddings": 24},
            "codebook_size": 32,
            "codebook_dim": 16,
            "grounding_temperature": 5.0,
        },
        "image_processor_config": {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}},
        "dataset": str(world),
        "output_dir": str(output_dir),
        "per_device_train_batch_size": BATCH_SIZE,
        "max_steps": NUM_STEPS,
        "learning_rate": 0.001,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        **changes,
    }
    output_dir.mkdir(parents=True, exist_ok=True)
    file = output_dir / "config.json"
    file.write_text(json.dumps(config))
    return file


def run(world: Path, output_dir: Path, **changes) -> list[dict]:
    """What a run logs at each step, but for times."""
    config = write_config(world, output_dir, **changes)
    history = train(*parse_arguments(PRETRAINING, [str(config)])).state.log_history
    return [{k: v for k, v in entry.items() if k != "pairs_per_second"} for entry in history if "loss" in entry]


@pytest.fixture(scope="module")
def whole_run(world, tmp_path_factory) -> list[dict]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SceneDataset, "num_scenes", NUM_SCENES)
        return run(world, tmp_path_factory.mktemp("whole"))


def test_scenes_come_in_order_through_all_epochs(world, tmp_path, made, whole_run):
    assert run(world, tmp_path) == whole_run
    assert made[: NUM_STEPS * BATCH_SIZE] == list(range(NUM_STEPS * BATCH_SIZE))
    assert len({entry["loss"] for entry in whole_run}) == NUM_STEPS == len(whole_run)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(world, tmp_path, whole_run, num_workers):
    assert run(world, tmp_path, dataloader_num_workers=num_workers) == whole_run


def test_accumulated_steps_see_the_same_scenes(world, tmp_path, made):
    run(world, tmp_path, per_device_train_batch_size=BATCH_SIZE // 2, gradient_accumulation_steps=2)
    assert made[: NUM_STEPS * BATCH_SIZE] == list(range(NUM_STEPS * BATCH_SIZE))


def main(config: str, step: int) -> None:
    """Train; be killed after `step`, unless it is 0; and write what each process has made and logged."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SceneDataset, "num_scenes", NUM_SCENES)
        made = note_scenes(patch)
        if step:
            patch.setattr("transformers.trainer.DEFAULT_CALLBACKS", [DefaultFlowCallback, Killer(step)])
        trainer = train(*parse_arguments(PRETRAINING, [config]))
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        rank = trainer.args.process_index
        Path(config).with_name(f"rank_{rank}.json").write_text(json.dumps({"made": made, "losses": losses}))
        if dist.is_initialized():
            dist.destroy_process_group()


def start(command: list[str], config: Path, step: int) -> subprocess.CompletedProcess:
    command = [sys.executable, *command, "-m", "tests.test_scene_training", str(config), str(step)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=Path(__file__).parents[1], env=environment, timeout=600)


def test_killed_run_goes_on_as_if_it_had_not_been(world, tmp_path, made, whole_run):
    changes = {"save_strategy": "steps", "save_steps": 5}
    assert start([], write_config(world, tmp_path, **changes), step=7).returncode == -signal.SIGKILL
    assert run(world, tmp_path, **changes, resume_from_checkpoint="true") == whole_run
    assert made[: 3 * BATCH_SIZE] == list(range(5 * BATCH_SIZE, NUM_STEPS * BATCH_SIZE))


def test_two_processes_make_disjoint_halves(world, tmp_path, whole_run):
    config = write_config(world, tmp_path, per_device_train_batch_size=BATCH_SIZE // 2)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    assert start(launch, config, step=0).returncode == 0
    ranks = [json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in range(2)]
    halves = [rank["made"][: NUM_STEPS * BATCH_SIZE // 2] for rank in ranks]
    assert sorted(sum(halves, [])) == list(range(NUM_STEPS * BATCH_SIZE))
    for rank in ranks:  # and the batch of a step is the same as that of one process
        assert rank["losses"] == pytest.approx([entry["loss"] for entry in whole_run], abs=1e-4)


@pytest.mark.parametrize("step", [2, 6])  # the last is where an epoch ends
def test_resumed_run_makes_nothing_anew_and_equals_the_one_never_stopped(world, tmp_path, made, whole_run, step):
    changes = {"save_strategy": "steps", "save_steps": step}
    assert run(world, tmp_path, **changes) == whole_run
    made.clear()
    assert run(world, tmp_path, **changes, resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}")) == whole_run
    assert made[: (NUM_STEPS - step) * BATCH_SIZE] == list(range(step * BATCH_SIZE, NUM_STEPS * BATCH_SIZE))


def test_validation_is_of_the_same_folder(world, tmp_path):
    run(world, tmp_path, validation_split="validation", eval_strategy="steps", eval_steps=NUM_STEPS)
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    assert any("eval_loss" in entry for entry in state["log_history"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": -1}, "no end: give max_steps"),
        ({"distinct_column": "concept"}, "distinct_column='concept' is no column"),
        ({"caption_column": "captions"}, "caption_column='captions' is no column"),
        ({"streaming": True}, "streaming"),
        ({"split": "valid"}, "split='valid' is not in"),
    ],
)
def test_what_scenes_cannot_do_is_refused(world, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run(world, tmp_path, **changes)


def test_a_folder_without_a_world_is_refused(tmp_path):
    with pytest.raises(ValueError, match="prepare_scenes"):
        SceneDataset(tmp_path)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
