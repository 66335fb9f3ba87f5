# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""The training script on a handful of made-up pictures."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset, DatasetDict
from PIL import Image
from torch.utils.data import BatchSampler
from transformers import AutoModel, AutoProcessor

from run_scripts import run_pretraining
from run_scripts.training_data import ContrastiveCollator, DistinctBatchSampler


COLORS = ["red", "green", "blue", "black", "white", "yellow", "gray", "orange"]
AUGMENTATION = {"RandomResizedCrop": {"size": [32, 32], "scale": [0.5, 1.0]}, "RandomHorizontalFlip": {"p": 0.5}}


def tiny_run(tmp_path, **changes) -> dict:
    """The JSON of a run of a few steps, its data written below `tmp_path`."""
    rows = [{"color": color, "image": Image.new("RGB", (40, 36), color)} for color in COLORS for _ in range(2)]
    for row in rows:
        row["caption"], row["captions"] = row["color"], [row["color"], f"a square in {row['color']}"]
    DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(str(tmp_path / "data"))
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    run = {
        "model_config": {
            "vision_config": {**tower, "image_size": 32, "patch_size": 16},
            "text_config": {**tower, "max_position_embeddings": 16},
            "codebook_size": 32,
            "codebook_dim": 16,
            "grounding_temperature": 5.0,
        },
        "image_processor_config": {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
        "dataset": str(tmp_path / "data"),
        "caption_column": "captions",
        "distinct_column": "color",
        "augmentation": AUGMENTATION,
        "output_dir": str(tmp_path / "output"),
        "max_steps": 3,
        "per_device_train_batch_size": 8,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
    }
    return {**run, **changes}


def parse(tmp_path, run: dict) -> tuple:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(run))
    return run_pretraining.parse_arguments([str(path)])


def test_a_run_ends_in_a_model_that_the_auto_classes_load(tmp_path):
    trainer = run_pretraining.train(*parse(tmp_path, tiny_run(tmp_path)))
    losses = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3
    assert all(0 < entry["active_codes_per_image"] <= 32 for entry in losses)
    assert all(0 < entry["active_codes_per_caption"] <= 32 and "logit_scale" in entry for entry in losses)

    model = AutoModel.from_pretrained(tmp_path / "output").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "output")
    assert processor.tokenizer.model_max_length == 16
    inputs = processor(images=[Image.new("RGB", (32, 32), "red")], text=COLORS, return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 32, 32)
    with torch.no_grad():
        logits = model(**inputs).logits_per_image
        assert torch.equal(logits, trainer.model.eval()(**inputs).logits_per_image)


def test_two_runs_of_one_seed_are_equal(tmp_path):
    first, second = (run_pretraining.train(*parse(tmp_path, tiny_run(tmp_path))) for _ in range(2))
    for name, parameter in first.model.named_parameters():
        assert torch.equal(parameter, second.model.get_parameter(name)), name


def test_training_lowers_the_loss_and_continues_from_a_checkpoint(tmp_path):
    run = tiny_run(tmp_path, max_steps=30, learning_rate=3e-3)
    losses = [e["loss"] for e in run_pretraining.train(*parse(tmp_path, run)).state.log_history if "loss" in e]
    assert losses[-1] < 0.5 * losses[0]
    del run["model_config"], run["image_processor_config"]
    run |= {"model_name_or_path": str(tmp_path / "output"), "max_steps": 1, "output_dir": str(tmp_path / "next")}
    trainer = run_pretraining.train(*parse(tmp_path, run))
    assert trainer.state.log_history[0]["loss"] < 0.5 * losses[0]


def test_weight_decay_spares_biases_norms_and_logit_scale_only(tmp_path):
    trainer = run_pretraining.train(*parse(tmp_path, tiny_run(tmp_path, max_steps=1)))
    decayed = set(trainer.get_decay_parameter_names(trainer.model))
    for name, parameter in trainer.model.named_parameters():
        # All weights but those of norms are matrices; CLIP's class embedding is a vector that is decayed.
        expected = parameter.ndim > 1 or name.endswith("class_embedding")
        assert (name in decayed) == expected, name
    assert "codebook" in decayed and "logit_scale" not in decayed


def test_weight_decay_spares_batch_norms(tmp_path):
    run = tiny_run(tmp_path, max_steps=1)
    tower = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}
    run["model_config"]["vision_config"] = tower
    trainer = run_pretraining.train(*parse(tmp_path, run))
    decayed = trainer.get_decay_parameter_names(trainer.model)
    assert any("convolution.weight" in name for name in decayed)
    assert not any("normalization" in name for name in decayed)


def test_flags_and_json_give_the_same_arguments(tmp_path):
    run = tiny_run(tmp_path)
    flags = []
    for name, value in run.items():
        flags += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    for by_json, by_flags in zip(parse(tmp_path, run)[:2], run_pretraining.parse_arguments(flags)[:2], strict=True):
        assert by_json == by_flags


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"learning_rat": 0.1}, "learning_rat"),
        ({"model_name_or_path": "somewhere"}, "either model_name_or_path or model_config"),
        ({"model_config": None}, "either model_name_or_path or model_config"),
        ({"model_config": {"codebook_sise": 8}}, "codebook_sise"),
        ({"model_config": "{broken"}, "model_config must be a JSON object"),
        ({"augmentation": []}, "augmentation must be a JSON object"),
        ({"augmentation": {"RandomHorizontalFlipp": {}}}, "RandomHorizontalFlipp"),
        ({"augmentation": {"RandomHorizontalFlip": {}}}, "must end in pictures of"),
        ({"caption_column": "text"}, "caption_column='text' is no column"),
        ({"image_processor_config": None}, "vision tower takes 32 pixels"),
        ({"per_device_train_batch_size": 9}, "needs as many distinct values, got 8"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run_pretraining.train(*parse(tmp_path, tiny_run(tmp_path, **changes)))


def test_unknown_flag_is_refused():
    with pytest.raises(ValueError, match="learning_rat"):  # no abbreviation of learning_rate
        run_pretraining.parse_arguments(["--dataset", "x", "--model_config", "{}", "--learning_rat", "1"])


@pytest.mark.parametrize("block_size", [1, 7, 20])
def test_every_block_is_distinct_and_as_many_as_can_be(block_size):
    values = np.repeat([f"value {number}" for number in range(20)], [1, 2, 3, 4] * 5)  # 50 rows
    sampler = DistinctBatchSampler(values, block_size, seed=0)
    rows = list(sampler)
    assert len(rows) == len(sampler) == len(set(rows)) and len(rows) % block_size == 0
    for block in np.reshape(rows, (-1, block_size)):
        assert len(set(values[block])) == block_size
    assert len(rows) // block_size == {1: 50, 7: 7, 20: 1}[block_size]


def test_epochs_differ_and_reach_every_row():
    values = ["a"] * 30 + ["b", "c"] * 5
    sampler = DistinctBatchSampler(values, block_size=2, seed=0)
    assert len(sampler) == 20  # b and c pair ten of the 30
    first = list(sampler)
    assert first == list(sampler)
    counts = Counter(first)
    for epoch in range(1, 40):
        sampler.set_epoch(epoch)
        counts.update(sampler)
    assert list(sampler) != first
    assert set(counts) == set(range(40))


def test_processes_together_read_distinct_blocks():
    values = np.arange(60) % 20
    sampler = DistinctBatchSampler(values, block_size=8, seed=0)
    batches = BatchSampler(sampler, batch_size=4, drop_last=True)
    shards = [list(BatchSamplerShard(batches, num_processes=2, process_index=rank)) for rank in range(2)]
    assert len(shards[0]) == len(shards[1]) == 7
    for batch_0, batch_1 in zip(*shards, strict=True):
        assert len(set(values[batch_0 + batch_1])) == 8


def test_collator_draws_captions_and_augments(tiny_processor):
    picture = Image.fromarray(np.arange(48 * 48 * 3, dtype=np.uint32).astype(np.uint8).reshape(48, 48, 3))
    rows = [{"image": picture, "texts": ["one", "two words"]} for _ in range(64)]
    augmented = ContrastiveCollator(tiny_processor, "image", "texts", AUGMENTATION)(rows)
    assert augmented["pixel_values"].shape == (64, 3, 32, 32)
    assert len(augmented["input_ids"].unique(dim=0)) == 2
    assert len(augmented["pixel_values"].unique(dim=0)) > 32
    plain = ContrastiveCollator(tiny_processor, "image", "texts", None)(rows[:2])
    assert torch.equal(plain["pixel_values"][0], plain["pixel_values"][1])


def test_augmentation_that_does_nothing_equals_evaluation(tiny_processor):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    rows = [{"image": image, "text": "x"} for image in (picture, picture.convert("RGBA"))]
    flip_nothing = {"RandomHorizontalFlip": {"p": 0.0}}
    plain, augmented = (ContrastiveCollator(tiny_processor, "image", "text", a)(rows) for a in (None, flip_nothing))
    # Rescaling by 1 / 255 and division by 255 differ in the last bit of float32.
    torch.testing.assert_close(augmented["pixel_values"], plain["pixel_values"], rtol=0, atol=1e-6)


def test_pictures_of_several_sizes_are_augmented(tiny_processor):
    rows = [{"image": Image.new("RGB", size, "red"), "text": "x"} for size in ((40, 50), (64, 33))]
    assert ContrastiveCollator(tiny_processor, "image", "text", AUGMENTATION)(rows)["pixel_values"].shape[0] == 2
