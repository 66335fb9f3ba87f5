"""A run that is killed goes on as if it had not been; a checkpoint that is not complete is never loaded."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from modeling_fdt import FDTModel
from run_scripts.data.batches import ReproducibleCollator
from run_scripts.training.reproducible import find_last_checkpoint
from run_scripts.training.trainer import FDTTrainer, FDTTrainingArguments
from tests.conftest import build_tiny_config


NUM_STEPS = 11


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    """Pairs, one of two captions each, pictures with random noise."""
    captions = torch.tensor([[49407, row["captions"][np.random.randint(2)], 49408] for row in rows])
    pixels = torch.stack([torch.full((3, 32, 32), row["kind"] / 8) for row in rows])
    return {
        "pixel_values": pixels + 0.1 * torch.randn(pixels.shape),
        "input_ids": captions,
        "attention_mask": torch.ones_like(captions),
    }


def make_trainer(output_dir: str, dropout: float = 0.1, **changes) -> FDTTrainer:
    """Eight kinds of pairs, each three times, in three steps an epoch; with everything that a checkpoint must hold."""
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = FDTModel(
        build_tiny_config(
            text_config={**tower, "attention_dropout": dropout},
            vision_config={**tower, "attention_dropout": dropout, "image_size": 32, "patch_size": 16},
        )
    )
    rows = [{"kind": row % 8, "captions": [100 + row % 8, 200 + row % 8]} for row in range(24)]
    arguments = {
        "output_dir": output_dir,
        "max_steps": NUM_STEPS,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 3e-3,
        "warmup_steps": 3,
        "lr_scheduler_type": "cosine",
        "temperature_decay": 0.5,
        "temperature_decay_steps": 8,
        "dead_code_steps": 2,
        "logit_scale_min": 3.0,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 2,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    arguments = FDTTrainingArguments(**{**arguments, **changes})
    return FDTTrainer(
        model, arguments, train_dataset=Dataset.from_list(rows), data_collator=collate, distinct_column="kind"
    )


def get_numbers(trainer: FDTTrainer) -> list[dict[str, float]]:
    """What was logged at each step, but for times."""
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [{name: value for name, value in entry.items() if name != "pairs_per_second"} for entry in entries]


def main(output_dir: str, step: int = 0) -> None:
    """Train, or resume, and be killed when a checkpoint of `step` is half written."""
    trainer = make_trainer(output_dir)
    save_optimizer = trainer._save_optimizer_and_scheduler

    def die(folder: str) -> None:
        save_optimizer(folder)
        if trainer.state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    trainer._save_optimizer_and_scheduler = die
    trainer.train(resume_from_checkpoint=True)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory) -> list[dict[str, float]]:
    trainer = make_trainer(str(tmp_path_factory.mktemp("whole")), save_strategy="no")
    trainer.train()
    return get_numbers(trainer)


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """The folder of a run that was killed by SIGKILL while it wrote the checkpoint of step 8."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-m", "tests.test_resume", str(folder), "8"]
    run = subprocess.run(command, cwd=Path(__file__).parents[1], timeout=600)
    assert run.returncode == -signal.SIGKILL
    return folder


def test_killed_run_goes_on_as_if_it_had_not_been(killed, whole_run):
    assert (killed / "checkpoint-8" / "optimizer.pt").exists()  # half written
    assert find_last_checkpoint(killed) == str(killed / "checkpoint-6")
    trainer = make_trainer(str(killed), save_strategy="no", resume_from_checkpoint="true")
    trainer.train(trainer.args.resume_from_checkpoint)
    assert get_numbers(trainer) == whole_run  # bit for bit, dead codes, pairs and temperature included
    assert len({entry["temperature"] for entry in whole_run}) == NUM_STEPS
    assert whole_run[-1]["pairs_seen"] == 8 * NUM_STEPS and whole_run[-1]["dead_codes"] > 0


@pytest.mark.slow
def test_run_killed_at_random_moments_goes_on_as_if_it_had_not_been(tmp_path, whole_run):
    moments = [(random.randint(1, 5), random.uniform(0, 0.3)) for _ in range(2)]
    for num_steps, seconds in moments:
        command = [sys.executable, "-u", "-m", "tests.test_resume", str(tmp_path)]
        with subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True) as run:
            logged = (line for line in run.stdout if "'loss'" in line)
            next(islice(logged, num_steps - 1, None), None)
            time.sleep(seconds)
            run.kill()
        assert run.returncode in (-signal.SIGKILL, 0)  # 0 where no step was left
    trainer = make_trainer(str(tmp_path))
    trainer.train(resume_from_checkpoint=True)
    assert get_numbers(trainer) == whole_run, f"killed {moments} (steps, seconds) after a start"


@pytest.mark.parametrize("step", [2, 4])
def test_every_checkpoint_leads_to_the_same_run(killed, whole_run, step):
    trainer = make_trainer(str(killed), save_strategy="no")
    trainer.train(str(killed / f"checkpoint-{step}"))
    assert get_numbers(trainer) == whole_run


def test_resumed_run_steers_the_temperature_as_if_it_had_not_stopped(tmp_path):
    changes = {"temperature_decay": None, "temperature_decay_steps": None, "target_active_codes": 4.0}
    trainer = make_trainer(str(tmp_path), **changes)
    trainer.train()
    whole_run = get_numbers(trainer)
    assert len({entry["temperature"] for entry in whole_run}) == NUM_STEPS
    for step in (2, 6):
        trainer = make_trainer(str(tmp_path), save_strategy="no", **changes)
        trainer.train(str(tmp_path / f"checkpoint-{step}"))
        assert get_numbers(trainer) == whole_run


def test_a_fresh_start_among_checkpoints_is_refused(killed):
    with pytest.raises(ValueError, match="holds checkpoint-2 of another run: give another folder, or resume_from"):
        make_trainer(str(killed)).train()


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"learning_rate": 1e-3},
            "is of another run: learning_rate is 0.001 and was 0.003; give another output_dir",
        ),
        (
            {"dropout": 0.2},
            "model.text_config.attention_dropout is 0.2 and was 0.1; model.vision_config",
        ),
        ({"temperature_decay": 0.9, "logit_scale_min": 2.0}, "logit_scale_min is 2.0 and was 3.0; temperature_decay"),
        ({"gradient_accumulation_steps": 4}, "batch_size is 16 and was 8"),
        ({"max_steps": 12, "seed": 1}, "max_steps is 12 and was 11; seed is 1 and was 42"),
    ],
)
def test_another_runs_checkpoint_is_refused(killed, changes, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(str(killed), **changes).train(resume_from_checkpoint=True)


def test_a_checkpoint_of_other_programs_is_refused(killed, tmp_path):
    shutil.copytree(killed / "checkpoint-6", tmp_path / "checkpoint-6")
    (tmp_path / "checkpoint-6" / "recipe.json").unlink()
    with pytest.raises(ValueError, match="was not written by FDTTrainer: it has no recipe.json"):
        make_trainer(str(tmp_path)).train(resume_from_checkpoint=True)


def test_a_finished_run_does_nothing_more(tmp_path):
    trainer = make_trainer(str(tmp_path), save_steps=NUM_STEPS)
    trainer.train()  # ends within an epoch
    again = make_trainer(str(tmp_path), save_steps=NUM_STEPS)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == NUM_STEPS
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, again.model.get_parameter(name)), name


def test_incomplete_checkpoints_are_refused(killed, tmp_path):
    trainer = make_trainer(str(killed))
    with pytest.raises(ValueError, match="is no complete checkpoint"):
        trainer.train(str(killed / "checkpoint-8"))
    for number, text in enumerate(["", '{"epoch": 1.0, "glob']):
        (tmp_path / f"checkpoint-{number}").mkdir()
        (tmp_path / f"checkpoint-{number}" / "trainer_state.json").write_text(text)
    assert find_last_checkpoint(tmp_path) is None
    assert find_last_checkpoint(tmp_path / "nowhere") is None


def test_without_a_checkpoint_training_starts_afresh(tmp_path, whole_run):
    trainer = make_trainer(str(tmp_path), save_strategy="no", max_steps=NUM_STEPS)
    trainer.train(resume_from_checkpoint=True)
    assert get_numbers(trainer) == whole_run


def test_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    trainer = make_trainer(str(tmp_path), save_total_limit=1)
    save, num_saved = torch.save, []

    def save_until_full(value, path, **kwargs):
        if trainer.state.global_step == 4 and str(path).endswith("optimizer.pt"):
            raise OSError(28, "No space left on device")
        num_saved.append(path)
        save(value, path, **kwargs)

    monkeypatch.setattr(torch, "save", save_until_full)
    with pytest.raises(OSError, match="No space left"):
        trainer.train()
    assert (tmp_path / "checkpoint-4").exists()
    assert find_last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")


def test_checkpoint_that_is_written_anew_is_not_complete_meanwhile(tmp_path):
    make_trainer(str(tmp_path), max_steps=4).train()
    trainer = make_trainer(str(tmp_path), max_steps=4)
    complete_while_saving = []
    save_scaler = trainer._save_scaler

    def look(folder: str) -> None:
        complete_while_saving.append(find_last_checkpoint(tmp_path))
        save_scaler(folder)

    trainer._save_scaler = look
    trainer.train(str(tmp_path / "checkpoint-2"))
    assert complete_while_saving == [str(tmp_path / "checkpoint-2")]
    assert find_last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")


@pytest.mark.parametrize("kind", ["rows", "rows read by workers that stay", "stream"])
def test_epochs_of_one_order_differ_in_what_is_drawn(tmp_path, kind):
    changes = {"train_sampling_strategy": "sequential", "accelerator_config": {"dispatch_batches": False}}
    if kind == "rows read by workers that stay":
        changes |= {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    trainer = make_trainer(str(tmp_path), max_steps=7, save_strategy="no", **changes)
    trainer.distinct_column = None
    if kind == "stream":
        trainer.train_dataset = trainer.train_dataset.to_iterable_dataset()
    batches = []
    trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: batches.append(kwargs["pixel_values"]), with_kwargs=True
    )
    trainer.train()
    # Of the two passes over two micro-batches in each step the first; steps 1, 4 and 7 begin an epoch of three.
    epochs = torch.stack(batches[0::4])[0::3]
    means = epochs.mean(dim=(2, 3, 4))
    torch.testing.assert_close(means, means[:1].expand(3, -1), atol=0.02, rtol=0)  # the same rows, by their colour
    assert not torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[1], epochs[2])


def test_batches_do_not_depend_on_what_was_drawn_before():
    rows = [{"kind": row, "captions": [100, 200]} for row in range(4)]
    collator = ReproducibleCollator(collate, seed=1)
    first = collator(rows)
    state = torch.get_rng_state()
    torch.randn(5), np.random.random(3)
    second = collator(rows)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name])
    torch.set_rng_state(state)
    collator(rows)
    assert torch.equal(torch.get_rng_state(), state)
    others = collator(rows[::-1]), ReproducibleCollator(collate, seed=2)(rows)
    assert all(not torch.equal(first["pixel_values"].sum(), other["pixel_values"].sum()) for other in others)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
