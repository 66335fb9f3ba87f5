"""Features of frozen towers on disk: training on them is training on images and captions, and none is ever wrong."""

import hashlib
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict, load_from_disk
from safetensors.torch import load_file
from transformers import set_seed

from modeling_fdt import FDTModel
from run_scripts.data.pairs import load_train_dataset
from run_scripts.training import features
from run_scripts.training.features import FeatureCollator, cache_features
from run_scripts.training.pretraining import build_model, train
from tests.test_run_pretraining import losses_of, parse, tiny_run


def frozen_run(folder: Path, **changes) -> dict:
    """The JSON of a run of 20 steps on frozen towers; its data, one caption a row, below `folder`."""
    run = tiny_run(folder, caption_column="caption", max_steps=20, learning_rate=3e-3)
    del run["augmentation"]
    return {**run, "freeze": ["vision_tower", "text_tower"], **changes}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(features, "ROWS_PER_SHARD", 6)


def hash_files(folder: Path) -> dict[str, str]:
    """By name, of all but the lock, which is empty."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name != features.LOCK_NAME
    }


def prepare(folder: Path, run: dict) -> tuple:
    """What `cache_features` takes after the folder."""
    model_arguments, data_arguments, training_arguments, _ = parse(folder, run)
    set_seed(training_arguments.seed)
    model, processor = build_model(model_arguments)
    return model, processor, load_train_dataset(data_arguments), training_arguments


def test_training_on_features_is_training_on_images_and_captions(tmp_path, monkeypatch):
    """And a run that reads what another has written ends in the same file."""
    run = frozen_run(tmp_path, cache_features=str(tmp_path / "features"), learning_rate=3e-4)
    plain = {**run, "cache_features": None, "output_dir": str(tmp_path / "plain")}
    expected = losses_of(train(*parse(tmp_path, plain)))
    saved = []
    for name in ("writes", "reads"):
        trainer = train(*parse(tmp_path, {**run, "output_dir": str(tmp_path / name)}))
        # Features are rounded to 11 bits; 20 steps from a loss of 3.1 to one of 1.9.
        assert losses_of(trainer) == pytest.approx(expected, abs=1e-3)
        saved.append(hash_files(tmp_path / name)["model.safetensors"])
    assert saved[0] == saved[1]
    model = trainer.model
    assert all(p.grad is None for tower in (model.vision_tower, model.text_tower) for p in tower.parameters())
    assert {*FDTModel.from_pretrained(tmp_path / "reads").state_dict()} == {*model.state_dict()}

    monkeypatch.setattr(features, "_to_half", lambda values, kind: values)
    run |= {"cache_features": str(tmp_path / "float32"), "output_dir": str(tmp_path / "exact")}
    assert losses_of(train(*parse(tmp_path, run))) == expected  # nothing but the rounding differs


def test_no_step_runs_a_tower_and_code_health_and_evaluation_still_work(tmp_path, monkeypatch):
    run = frozen_run(tmp_path, cache_features=str(tmp_path / "features"), max_steps=4, gradient_accumulation_steps=2)
    run |= {"per_device_train_batch_size": 4, "reseed_dead_codes": True, "dead_code_steps": 1}
    cache_features(run["cache_features"], *prepare(tmp_path, run))
    calls = []
    monkeypatch.setattr(FDTModel, "_run_vision_tower", lambda *args, **kwargs: calls.append("image"))
    train(*parse(tmp_path, run))
    assert not calls
    monkeypatch.undo()
    monkeypatch.setattr(features, "ROWS_PER_SHARD", 5)  # a cache keeps the size that it began with
    run |= {"validation_split": "train", "eval_strategy": "steps", "eval_steps": 4, "output_dir": str(tmp_path / "2")}
    trainer = train(*parse(tmp_path, run))
    assert any("eval_image_to_text_R@1" in entry for entry in trainer.state.log_history)


def test_several_captions_and_broken_rows(tmp_path):
    run = frozen_run(tmp_path, caption_column="captions", distinct_column=None)
    rows = load_from_disk(run["dataset"])["train"].to_list()
    rows[0]["image"], rows[7]["image"], rows[8]["captions"] = {"bytes": b"no image"}, None, [" "]
    rows[9]["captions"] = ["one", "two words", "", "three words here"]
    folder = tmp_path / "other"
    DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(str(folder))
    model, processor, pairs, arguments = prepare(tmp_path, {**run, "dataset": str(folder)})
    cached = cache_features(tmp_path / "features", model, processor, pairs, arguments)
    reasons = {row: cached.dataset.read(row) for row in range(16) if isinstance(cached.dataset.read(row), str)}
    assert reasons == {0: "undecodable_image", 7: "missing_image", 8: "missing_caption"}
    assert [pair["index"] for pair in cached.__getitems__([0, 3, 6, 7])] == [1, 3, 6, 9]  # as of the pairs themselves
    assert cached.counts.totals()["skipped_missing_image"] == 1
    for row in (5, 9, 15):
        pair = pairs[row]
        inputs = processor(images=pair["image"], text=pair["caption"], return_tensors="pt")
        found = cached[row]["features"]
        with torch.no_grad():
            expected = model.get_patch_features(inputs["pixel_values"])[0]
            tokens = model.get_token_features(inputs["input_ids"], inputs["attention_mask"])
        # Rounding to float16, and float32 sums in another order for other batches.
        torch.testing.assert_close(found.patches.float(), expected, rtol=1e-3, atol=1e-4)
        for caption, row_of_tokens, mask in zip(found.captions, tokens, inputs["attention_mask"], strict=True):
            torch.testing.assert_close(caption.float(), row_of_tokens[mask.bool()], rtol=1e-3, atol=1e-4)
    random.seed(0)
    drawn = {tuple(FeatureCollator()([cached[9]])["attention_mask"].shape) for _ in range(20)}
    assert drawn == {(1, 3), (1, 4), (1, 5)}
    again = pickle.loads(pickle.dumps(cached))  # as a worker that is not forked gets it
    assert not again.dataset._shards and torch.equal(again[9]["features"].patches, cached[9]["features"].patches)


def test_a_killed_writer_is_taken_up_and_leaves_no_wrong_feature(tmp_path):
    run = frozen_run(tmp_path, cache_features=str(tmp_path / "features"))
    prepared = prepare(tmp_path, run)
    cache_features(tmp_path / "whole", *prepared)
    expected = hash_files(tmp_path / "whole")
    assert len(expected) == 4
    shards = [name for name in expected if name.endswith(".safetensors")]
    writer = f"""
import sys, time
from pathlib import Path
import torch
from run_scripts.training import features
from tests.test_features import prepare
features.ROWS_PER_SHARD = 6
save = features.save
def save_slowly(*args):
    time.sleep(0.3)
    return save(*args)
features.save = save_slowly
prepared = prepare(Path({str(tmp_path / "process")!r}), {run!r})
print("begins", flush=True)
features.cache_features({run["cache_features"]!r}, *prepared)
"""
    (tmp_path / "process").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", writer], cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "begins\n"
    time.sleep(random.Random().uniform(0, 1.2))  # wherever it is: the moment does not matter
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    left = hash_files(tmp_path / "features")
    assert all(left[name] == expected[name] for name in shards if name in left)
    cache_features(tmp_path / "features", *prepared)
    assert hash_files(tmp_path / "features") == expected


def test_a_write_that_stops_half_way_leaves_no_shard(tmp_path, monkeypatch):
    prepared = prepare(tmp_path, frozen_run(tmp_path))
    monkeypatch.setattr(features.os, "fsync", lambda number: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cache_features(tmp_path / "features", *prepared)
    assert all(name.endswith(features.PARTIAL_SUFFIX) for name in hash_files(tmp_path / "features"))
    monkeypatch.undo()
    cache_features(tmp_path / "features", *prepared)
    assert not any(name.endswith(features.PARTIAL_SUFFIX) for name in hash_files(tmp_path / "features"))


def change_data(prepared: tuple) -> None:
    pairs = prepared[2]
    rows = pairs.dataset.to_list()
    rows[3]["caption"] = "gren"
    pairs.dataset = pairs.dataset.select([]).from_list(rows, features=pairs.dataset.features)


CHANGES = {
    "dataset": change_data,
    "vision_tower": lambda prepared: setattr(prepared[0].vision_tower.config, "hidden_act", "relu"),
    "text_tower": lambda prepared: next(prepared[0].text_tower.parameters()).data.view(-1)[5:6].add_(1e-3),
    "image_processor": lambda prepared: setattr(prepared[1].image_processor, "image_mean", [0.5, 0.5, 0.5]),
    "tokenizer": lambda prepared: setattr(prepared[1].tokenizer, "model_max_length", 8),
}


@pytest.mark.parametrize("what", CHANGES)
def test_the_features_of_others_are_refused(what, tmp_path):
    run = frozen_run(tmp_path)
    cache_features(tmp_path / "features", *prepare(tmp_path, run))
    before = hash_files(tmp_path / "features")
    cache_features(tmp_path / "features", *prepare(tmp_path, run))  # the same, made anew, is taken
    prepared = prepare(tmp_path, run)
    CHANGES[what](prepared)
    with pytest.raises(ValueError, match=f"holds features of another {what}: give another"):
        cache_features(tmp_path / "features", *prepared)
    assert hash_files(tmp_path / "features") == before


def test_a_model_that_was_saved_and_a_tokenizer_that_was_used_are_the_same(tmp_path):
    run = frozen_run(tmp_path)
    model, processor, pairs, arguments = prepare(tmp_path, run)
    cache_features(tmp_path / "features", model, processor, pairs, arguments)
    model.codebook.data.zero_()
    processor(text=["a longer caption", "a"], padding="max_length", truncation=True)
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    del run["model_config"], run["image_processor_config"]
    model, processor, pairs, arguments = prepare(tmp_path, {**run, "model": str(tmp_path / "saved")})
    cache_features(tmp_path / "features", model, processor, pairs, arguments)


def test_shards_of_others_damaged_ones_and_other_folders_are_refused(tmp_path):
    run = frozen_run(tmp_path)
    prepared = prepare(tmp_path, run)
    cache_features(tmp_path / "first", *prepared)
    change_data(prepared)
    cache_features(tmp_path / "second", *prepared)
    shard = "features-00001-of-00003.safetensors"
    (tmp_path / "second" / shard).write_bytes((tmp_path / "first" / shard).read_bytes())
    with pytest.raises(ValueError, match=f"{shard} belongs to another cache"):
        cache_features(tmp_path / "second", *prepared)
    (tmp_path / "second" / shard).write_bytes((tmp_path / "first" / shard).read_bytes()[:-5])
    with pytest.raises(ValueError, match=f"{shard} cannot be read"):
        cache_features(tmp_path / "second", *prepared)
    with pytest.raises(ValueError, match="is no cache of features: it holds"):
        cache_features(tmp_path / "data", *prepared)


def test_features_beyond_float16_are_refused(tmp_path):
    model, *others = prepare(tmp_path, frozen_run(tmp_path))
    model.text_tower.final_layer_norm.weight.data.fill_(1e6)
    with pytest.raises(ValueError, match="cannot keep what the text tower gives: its largest value is"):
        cache_features(tmp_path / "features", model, *others)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"freeze": ["vision_tower", "text_tower[:-1]"]}, r"the features of \['text_tower'\] would change"),
        ({"freeze": None}, "cache_features needs freeze vision_tower text_tower"),
        ({"augmentation": {"RandomHorizontalFlip": {"p": 0.5}}}, "augmentation must not be given"),
        ({"streaming": True, "distinct_column": None}, "streaming must not be given"),
        ({"dataset": "{0..3}.tar", "distinct_column": None}, "needs rows, not a stream"),
        ({"model_config": {"model_type": "clip"}}, "is for FDT"),
    ],
)
def test_what_cannot_be_cached_is_refused(changes, message, tmp_path):
    run = frozen_run(tmp_path, cache_features=str(tmp_path / "features"))
    if "model_config" in changes:
        towers = {half: run["model_config"][half] for half in ("vision_config", "text_config")}
        changes = {"model_config": {**changes["model_config"], "projection_dim": 16, **towers}}
    with pytest.raises(ValueError, match=message):
        train(*parse(tmp_path, {**run, **changes}))
    assert not (tmp_path / "features").exists()


def test_the_tensors_of_a_shard(tmp_path):
    """A cache is a format: what others may read."""
    cache_features(tmp_path / "features", *prepare(tmp_path, frozen_run(tmp_path)))
    tensors = load_file(tmp_path / "features" / "features-00002-of-00003.safetensors")
    assert tensors["patch_features"].shape == (4, 4, 16) and tensors["patch_features"].dtype == torch.float16
    assert tensors["row_ends"].tolist() == [0, 1, 2, 3, 4] and len(tensors["caption_ends"]) == 5
    assert tensors["token_features"].shape == (tensors["caption_ends"][-1], 16)
    description = json.loads((tmp_path / "features" / features.DESCRIPTION_NAME).read_text())
    assert description["num_rows"] == 16 and description["rows_per_shard"] == 6
