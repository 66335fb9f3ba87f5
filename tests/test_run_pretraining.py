# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""The training script on a handful of made-up pictures."""

import json
import math
from collections import Counter
from concurrent.futures import Future
from functools import reduce
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset, DatasetDict
from PIL import Image
from torch.utils.data import BatchSampler
from transformers import AutoModel, AutoProcessor, CLIPModel

import run_scripts
from modeling_fdt import FDTConfig, FDTImageProcessor
from run_scripts.arguments import merge, parse_arguments, read_config
from run_scripts.data import pairs as training_data
from run_scripts.data.augmentation import Augmentation
from run_scripts.data.batches import ContrastiveCollator, DistinctBatchSampler
from run_scripts.evaluation import metrics
from run_scripts.evaluation.embedding import embed_captions, embed_images, load_model
from run_scripts.prepare_synthetic_pairs import SyntheticPairsArguments, prepare_synthetic_pairs
from run_scripts.run_pretraining import main
from run_scripts.training.arguments import PRETRAINING
from run_scripts.training.pretraining import PretrainingTrainer, train


COLORS = ["red", "green", "blue", "black", "white", "yellow", "gray", "orange"]
CONFIGS = Path(run_scripts.__file__).with_name("configs")
RESNET = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}
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
    return parse_arguments(PRETRAINING, [str(path)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[PretrainingTrainer, Path]:
    """A run of 30 steps, evaluated at the last, and its folder."""
    tmp_path = tmp_path_factory.mktemp("trained")
    run = tiny_run(
        tmp_path, max_steps=30, learning_rate=3e-3, validation_split="train", eval_strategy="steps", eval_steps=30
    )
    run |= {"model_config": {**run["model_config"], "vision_config": RESNET}, "per_device_eval_batch_size": 7}
    return train(*parse(tmp_path, run)), tmp_path


def go_on(tmp_path) -> dict:
    """The JSON of a run of one step that begins with what another one left in `tmp_path`."""
    run = tiny_run(tmp_path, model=str(tmp_path / "output"), max_steps=1)
    run["output_dir"] = str(tmp_path / "next")
    del run["model_config"], run["image_processor_config"]
    return run


def losses_of(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_convolutions_have_the_layout_that_is_fast_on_a_cpu(trained):
    model = trained[0].model
    weights = [module.weight for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    assert weights and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


def test_a_run_ends_in_a_model_that_the_auto_classes_load(trained):
    trainer, tmp_path = trained
    losses = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 30
    assert all(0 < entry["active_codes_per_image"] <= 32 for entry in losses)
    assert all(0 < entry["active_codes_per_caption"] <= 32 and "logit_scale" in entry for entry in losses)

    model = AutoModel.from_pretrained(tmp_path / "output").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "output")
    assert processor.tokenizer.model_max_length == 16
    inputs = processor(images=[Image.new("RGB", (32, 32), "red")], text=COLORS, return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 32, 32)
    with torch.no_grad():
        logits = model(**inputs).logits_per_image
        # What is loaded has its convolutions in the usual layout, and sums in another order.
        torch.testing.assert_close(logits, trainer.model.eval()(**inputs).logits_per_image, atol=1e-4, rtol=0)


def test_a_run_leaves_a_config_that_starts_it_again(trained):
    trainer, tmp_path = trained
    model, data, training, _ = parse_arguments(PRETRAINING, [str(tmp_path / "output" / "arguments.json")])
    assert (model.model_config["vision_config"], data.augmentation) == (RESNET, AUGMENTATION)
    assert training.to_dict() == trainer.args.to_dict()


def test_only_what_decides_the_outcome_must_be_the_same_on_resume(tmp_path):
    run = tiny_run(tmp_path, max_steps=1, save_strategy="steps")
    train(*parse(tmp_path, run))
    run |= {"resume_from_checkpoint": "true", "dataset": str(tmp_path / "data")}
    for changes, message in (
        ({"augmentation": {"Resize": {"size": [32, 32]}}}, "augmentation.RandomHorizontalFlip.p is not given"),
        ({"caption_column": "caption"}, "caption_column is not given and was 'captions'"),
        ({"model_config": {**run["model_config"], "codebook_size": 64}}, "model.codebook_size is 64 and was 32"),
    ):
        with pytest.raises(ValueError, match=message):
            train(*parse(tmp_path, run | changes))
    free = {"max_broken_fraction": 0.5, "augment_on_device": True, "per_device_train_batch_size": 4}
    train(*parse(tmp_path, run | free | {"gradient_accumulation_steps": 2, "logging_steps": 2}))


def test_training_lowers_the_loss_and_continues_from_a_checkpoint(trained):
    trainer, tmp_path = trained
    losses = losses_of(trainer)
    assert losses[-1] < 0.5 * losses[0]
    run = tiny_run(tmp_path, model=str(tmp_path / "output"), max_steps=1, output_dir=str(tmp_path / "next"))
    del run["model_config"], run["image_processor_config"]
    assert losses_of(train(*parse(tmp_path, run)))[0] < 0.5 * losses[0]


def test_evaluation_is_of_every_row_without_augmentation(trained):
    trainer, tmp_path = trained
    (evaluation,) = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    rows = trainer.eval_dataset
    assert len(rows) == 16  # 7, 7 and 2: none is left out
    model, processor = load_model(str(tmp_path / "output"))
    scores = (
        embed_images(model, processor, rows["image"]).embeds
        @ embed_captions(model, processor, rows["caption"]).embeds.T
    )
    is_relevant = torch.tensor([[a == b for b in rows["caption"]] for a in rows["caption"]])
    assert evaluation["eval_image_to_text_R@1"] == pytest.approx(metrics.recall_at(scores, is_relevant, 1))
    assert evaluation["eval_text_to_image_R@1"] == pytest.approx(metrics.recall_at(scores.T, is_relevant, 1))
    assert evaluation["eval_image_to_text_R@1"] > 0.5


def test_two_runs_of_one_seed_are_equal_whoever_augments(tmp_path):
    # Augmentation by two workers, by none, and on the device.
    changes = ({"dataloader_num_workers": 2}, {}, {"augment_on_device": True})
    first, *others = (train(*parse(tmp_path, tiny_run(tmp_path, **change))) for change in changes)
    for other in others:
        for name, parameter in first.model.named_parameters():
            assert torch.equal(parameter, other.model.get_parameter(name)), name


def test_the_device_augments_a_micro_batch_once(tmp_path, monkeypatch):
    calls, vary = [], Augmentation.vary_batch
    monkeypatch.setattr(
        Augmentation, "vary_batch", lambda self, pixels, seed: calls.append(seed) or vary(self, pixels, seed)
    )
    changes = {"augment_on_device": True, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    train(*parse(tmp_path, tiny_run(tmp_path, **changes)))
    assert len(calls) == len({*calls}) == 2 * 3  # micro-batches, steps


def test_weight_decay_spares_biases_norms_and_logit_scale_only(trained):
    trainer, _ = trained
    decayed = set(trainer.get_decay_parameter_names(trainer.model))
    assert any("convolution.weight" in name for name in decayed)
    for name, parameter in trainer.model.named_parameters():
        # All weights but those of norms are matrices or convolutions.
        assert (name in decayed) == (parameter.ndim > 1), name
    assert "codebook" in decayed and "logit_scale" not in decayed


# CLIP, tar shards


@pytest.mark.slow
def test_ten_thousand_pairs_with_broken_ones_train_through(tmp_path, monkeypatch):
    prepare_synthetic_pairs(
        SyntheticPairsArguments(
            str(tmp_path / "pairs"), num_pairs=10_000, pairs_per_shard=1000, image_size=32, broken_fraction=0.03
        )
    )
    # The workers are forked and inherit an end after one epoch: 9,700 pairs in batches of at most 500.
    monkeypatch.setattr(training_data, "count", lambda: range(1))
    run = tiny_run(tmp_path, dataset=f"{tmp_path}/pairs/{{00000..00009}}.tar", caption_column="caption", max_steps=20)
    run |= {"distinct_column": None, "dataloader_num_workers": 2}
    run |= {"augmentation": {"RandomResizedCrop": {"size": [32, 32]}}}
    run |= {"per_device_train_batch_size": 500, "logging_steps": 20, "learning_rate": 3e-3}
    trainer = train(*parse(tmp_path, run))
    (entry,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert entry["skipped_undecodable_image"] == 300
    assert entry["skipped_missing_image"] == entry["skipped_missing_caption"] == entry["skipped_unreadable_shard"] == 0
    assert trainer.train_dataset.counts.totals()["pairs_read"] == 10_000
    assert entry["pairs_seen"] == 9_700


def test_clip_trains_by_the_same_script_and_is_loaded_by_the_auto_classes(tmp_path):
    run = tiny_run(tmp_path, max_steps=2)
    towers = {half: run["model_config"][half] for half in ("vision_config", "text_config")}
    run["model_config"] = {"model_type": "clip", "projection_dim": 16, "freeze_patch_embedding": True, **towers}
    run |= {"validation_split": "train", "eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 7}
    trainer = train(*parse(tmp_path, run))
    assert 0 <= trainer.state.log_history[-2]["eval_image_to_text_R@1"] <= 1
    assert [n for n, p in trainer.model.named_parameters() if not p.requires_grad] == [
        "vision_model.embeddings.patch_embedding.weight"
    ]
    assert trainer.model.config.text_config.vocab_size == 49409

    model, processor = load_model(str(tmp_path / "output"))
    assert type(model) is CLIPModel
    pictures = [Image.new("RGB", (32, 32), color) for color in COLORS]
    inputs = processor(images=pictures, text=COLORS, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs)
        outputs = trainer.model.eval()(**inputs)
    assert torch.equal(outputs.logits_per_image, expected.logits_per_image)
    run = tiny_run(tmp_path, model=str(tmp_path / "output"), max_steps=1, output_dir=str(tmp_path / "next"))
    del run["model_config"], run["image_processor_config"]
    assert type(train(*parse(tmp_path, run)).model) is CLIPModel


def test_a_run_pushes_its_model_and_card(tmp_path, monkeypatch):
    pushed = []

    def upload_folder(repo_id, allow_patterns, **kwargs):
        pushed.append((repo_id, set(allow_patterns)))
        return Future()

    hub = SimpleNamespace(
        create_repo=lambda name, **kwargs: SimpleNamespace(repo_id=name), upload_folder=upload_folder
    )
    monkeypatch.setattr("transformers.trainer.hf_api", lambda: hub)
    monkeypatch.setattr("run_scripts.hub.files.HfApi", lambda token: hub)
    run = tiny_run(tmp_path, max_steps=1, push_to_hub=True, hub_model_id="someone/fdt")
    train(*parse(tmp_path, run))
    ((name, files),) = pushed
    assert name == "someone/fdt"
    assert {"config.json", "model.safetensors", "tokenizer.json", "processor_config.json", "README.md"} <= files
    assert "training_args.bin" not in files


# The configs


LARGE_CONFIGS = ["cc3m_vit_b32", "yfcc15m_vit_b32", "cc3m_clip_vit_b32", "cc3m_declip_vit_b32"]


def read(*names: str) -> dict:
    """Config files of the repository, the later over the earlier."""
    return reduce(merge, [read_config(CONFIGS / f"{name}.json") for name in names])


@pytest.mark.parametrize("name", LARGE_CONFIGS)
def test_a_smoke_run_differs_in_size_alone(name):
    full, smoke = read(name), read(name, "smoke")
    differing = {key for key in full.keys() | smoke.keys() if full.get(key) != smoke.get(key)}
    assert differing == {
        *("model_config", "image_processor_config", "dataset", "augmentation", "output_dir", "max_steps"),
        *("per_device_train_batch_size", "warmup_steps", "dataloader_num_workers", "logging_steps", "save_strategy"),
        *("bf16", "use_cpu"),
    }
    towers = {"vision_config", "text_config"}
    assert {k: v for k, v in smoke["model_config"].items() if k not in towers} == full["model_config"]
    assert list(full["augmentation"]) == list(smoke["augmentation"])
    for step, arguments in full["augmentation"].items():
        assert smoke["augmentation"][step] == arguments | ({"size": [32, 32]} if "size" in arguments else {})


def test_configs_of_other_data_and_objectives_say_what_differs():
    full = read("cc3m_vit_b32")
    assert {key for key, value in read("yfcc15m_vit_b32").items() if value != full[key]} == {
        *("dataset", "output_dir", "max_steps", "per_device_train_batch_size"),
    }
    declip = read("cc3m_declip_vit_b32")
    assert {key: value for key, value in declip.items() if value != full.get(key)} == {
        "objective": "declip",
        "output_dir": "outputs/cc3m_declip_vit_b32",
    }
    clip = read("cc3m_clip_vit_b32")
    assert {key for key, value in clip.items() if value != full[key]} == {"model_config", "output_dir"}
    assert clip["model_config"] == {"model_type": "clip", "projection_dim": 512, "freeze_patch_embedding": True}


def test_the_recipe_is_the_originals(tmp_path):
    model, data, training, _ = parse(tmp_path, read("cc3m_vit_b32") | {"use_cpu": True})
    config = FDTConfig(**model.model_config)
    assert (config.codebook_size, config.codebook_dim, config.grounding_temperature) == (16384, 512, 1000)
    assert (config.grounding_activation, config.token_pooling) == ("sparsemax", "max")
    assert config.freeze_patch_embedding and config.vision_config.patch_size == 32
    assert training.per_device_train_batch_size * 8 == 1024 and training.max_steps == 86_560
    assert (training.adam_beta1, training.adam_beta2, training.adam_epsilon) == (0.9, 0.98, 1e-8)
    assert (training.weight_decay, training.logit_scale_min, training.logit_scale_max) == (0.1, 3, 6)
    assert training.max_grad_norm == 0
    assert training.temperature_decay is None
    assert data.augmentation == {
        "RandomResizedCrop": {"size": [224, 224], "scale": [0.2, 1.0]},
        "ColorJitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "p": 0.8},
        "RandomGrayscale": {"p": 0.2},
        "RandomGaussianBlur": {"sigma": [0.1, 2.0], "p": 0.5},
        "RandomHorizontalFlip": {"p": 0.5},
    }
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=training.learning_rate)
    rate = transformers.get_scheduler(
        training.lr_scheduler_type,
        optimizer,
        training.get_warmup_steps(training.max_steps),
        training.max_steps,
        training.lr_scheduler_kwargs,
    ).lr_lambdas[0]
    # From 1e-4 in 2,500 steps to 1e-3, then a cosine to 0.
    assert [round(1e-3 * rate(step), 7) for step in (0, 2499, 86_559)] == [1e-4, 1e-3, 0]
    assert rate(2499 + (86_560 - 2500) // 2) == pytest.approx(0.5)


@pytest.mark.parametrize("name", LARGE_CONFIGS)
def test_smoke_runs_train(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare_synthetic_pairs(SyntheticPairsArguments())
    argv = [f"run_scripts/configs/{name}.json", "run_scripts/configs/smoke.json"]  # as the docs say
    arguments = parse_arguments(PRETRAINING, [*argv, "--max_steps", "4", "--logging_steps", "1"])
    losses = losses_of(train(*arguments))
    assert len(losses) == 4 and all(map(math.isfinite, losses))


@pytest.mark.parametrize(
    "name", sorted(path.stem for pattern in ("*vit_b32*", "emoji*", "scenes*") for path in CONFIGS.glob(pattern))
)
def test_every_config_is_understood(name, tmp_path):
    model, data, training, objective = parse(tmp_path, read(name) | {"use_cpu": True})
    assert training.output_dir == f"outputs/{name}"
    assert objective.objective == ("declip" if "declip" in name else "contrastive")
    fields = dict(model.model_config)
    if fields.pop("model_type", "fdt") == "fdt":
        FDTConfig(**fields)
    image_processor = FDTImageProcessor(**(model.image_processor_config or {}))
    if data.augmentation is not None:
        Augmentation(data.augmentation, image_processor)


# Arguments


def test_flags_and_json_give_the_same_arguments(tmp_path):
    run = tiny_run(tmp_path)
    flags = []
    for name, value in run.items():
        flags += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    for by_json, by_flags in zip(parse(tmp_path, run)[:2], parse_arguments(PRETRAINING, flags)[:2], strict=True):
        assert by_json == by_flags


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"learning_rat": 0.1}, "learning_rat"),
        ({"model": "somewhere"}, "give either model, vision_model"),
        ({"model_config": None}, "give either model, vision_model"),
        ({"model_config": {"codebook_sise": 8}}, "codebook_sise"),
        ({"model_config": "{broken"}, "model_config must be a JSON object"),
        ({"augmentation": []}, "augmentation must be a JSON object"),
        ({"augmentation": {"RandomHorizontalFlipp": {}}}, "RandomHorizontalFlipp"),
        ({"augmentation": {"RandomResizedCrop": {"size": [24, 24]}}}, "must end in images of"),
        ({"model_config": {"vision_config": {"hiden_size": 8}}}, "hiden_size"),
        ({"model_config": {"model_type": "clop"}}, "model_type 'clop', it must be one of"),
        ({"model_config": {"model_type": "clip", "codebook_size": 8}}, "no field .'codebook_size'."),
        ({"model_config": {"model_type": "clip", "text_config": {"hiden_size": 8}}}, "hiden_size"),
        ({"model_config": {"model_type": "clip", "vision_config": {"model_type": "vit"}}}, "takes CLIP's towers"),
        ({"image_processor_config": {"crop_sise": 8}}, "crop_sise"),
        ({"dataset": "nowhere/{0..3}.tar", "distinct_column": None}, "4 of which do not exist"),
        ({"streaming": True, "distinct_column": None, "max_steps": -1}, "a stream has no length: give max_steps"),
        ({"streaming": True, "distinct_column": None, "dataloader_num_workers": 17}, "16 shards for 17 readers"),
        (
            {"streaming": True, "distinct_column": None, "accelerator_config": {"dispatch_batches": True}},
            "must not set dispatch_batches",
        ),
        ({"validation_split": "train"}, "validation_split and eval_strategy go together"),
        ({"eval_strategy": "steps"}, "validation_split and eval_strategy go together"),
        ({"validation_split": "test", "eval_strategy": "steps"}, "split='test' is not in"),
        ({"output_dir": "/proc/nowhere"}, "output_dir='/proc/nowhere' cannot be written"),
        ({"per_device_train_batch_size": 17, "distinct_column": None}, "needs 17 pairs, the data set has 16"),
        ({"caption_column": "text"}, "caption_column='text' is no column"),
        ({"image_processor_config": None}, "vision tower takes 32 pixels"),
        ({"per_device_train_batch_size": 9}, "needs as many distinct values, got 8"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(*parse(tmp_path, tiny_run(tmp_path, **changes)))


@pytest.mark.parametrize("resume", [None, "true"])
def test_a_finished_model_is_not_overwritten(resume, tmp_path):
    run = tiny_run(tmp_path, resume_from_checkpoint=resume)
    FDTConfig().save_pretrained(run["output_dir"])
    with pytest.raises(ValueError, match="output_dir='.*output' holds a model and no checkpoint to resume from"):
        main(*parse(tmp_path, run))


def test_unknown_flag_is_refused(capsys):
    with pytest.raises(SystemExit):  # no abbreviation of learning_rate
        parse_arguments(PRETRAINING, ["--dataset", "x", "--model_config", "{}", "--learning_rat", "1"])
    assert "unrecognized arguments: --learning_rat 1" in capsys.readouterr().err


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
    rows = [{"image": picture, "caption": ["one", "two words"]} for _ in range(64)]
    augmented = ContrastiveCollator(tiny_processor, AUGMENTATION)(rows)
    assert augmented["pixel_values"].shape == (64, 3, 32, 32)
    assert len(augmented["input_ids"].unique(dim=0)) == 2
    assert len(augmented["pixel_values"].unique(dim=0)) > 32
    plain = ContrastiveCollator(tiny_processor)(rows[:2])
    assert torch.equal(plain["pixel_values"][0], plain["pixel_values"][1])


def test_augmentation_that_does_nothing_equals_evaluation(tiny_processor):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    rows = [{"image": image, "caption": "x"} for image in (picture, picture.convert("RGBA"))]
    flip_nothing = {"RandomHorizontalFlip": {"p": 0.0}}
    plain, augmented = (ContrastiveCollator(tiny_processor, a)(rows) for a in (None, flip_nothing))
    # Rescaling by 1 / 255 and division by 255 differ in the last bit of float32.
    torch.testing.assert_close(augmented["pixel_values"], plain["pixel_values"], rtol=0, atol=1e-6)
