"""Fine-tuning on a handful of made-up pictures: every way of it improves on pictures held out."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, CLIPConfig, EvalPrediction, pipeline

import run_scripts
from modeling_fdt import (
    FDTConfig,
    FDTForImageClassification,
    FDTImageProcessor,
    FDTModel,
    FDTProcessor,
    FDTTokenizer,
    FDTVisionModel,
)
from run_scripts.arguments import parse_arguments
from run_scripts.training.arguments import FINE_TUNING
from run_scripts.training.finetuning import build_trainer, finetune, format_results
from run_scripts.training.trainer import compute_retrieval


CONFIGS = Path(run_scripts.__file__).with_name("configs")
COLORS = {"black": 0, "blue": 1, "green": 2, "red": 4, "white": 7, "yellow": 6}  # bits: red, green, blue
AUGMENTATION = {"RandomResizedCrop": {"size": [32, 32], "scale": [0.5, 1.0]}, "RandomHorizontalFlip": {"p": 0.5}}
RESNET = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}


def save_base(path: Path, **changes) -> str:
    """An untrained model with its processor, the checkpoint to start from."""
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {
        "vision_config": {**tower, "image_size": 32, "patch_size": 16},
        "text_config": {**tower, "max_position_embeddings": 16},
        "codebook_size": 32,
        "codebook_dim": 16,
        "grounding_temperature": 5.0,
    }
    FDTModel(FDTConfig(**{**config, **changes})).save_pretrained(path)
    image_processor = FDTImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    FDTProcessor(image_processor=image_processor, tokenizer=FDTTokenizer(model_max_length=16)).save_pretrained(path)
    return str(path)


def draw(color: str, random: np.random.Generator) -> Image.Image:
    """A noisy picture of one colour."""
    bits = COLORS[color]
    mean = np.array([bits >> 2 & 1, bits >> 1 & 1, bits & 1]) * 160 + 40
    return Image.fromarray((mean + random.normal(0, 40, (36, 40, 3))).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A base checkpoint, a folder of pictures by class, and one of pictures with captions."""
    root, random = tmp_path_factory.mktemp("finetuning"), np.random.default_rng(0)
    save_base(root / "base")
    for split, number in (("train", 8), ("test", 3)):
        captions = [["file_name", "text"]]
        for color in COLORS:
            for index in range(number):
                for path in (f"classes/{split}/{color}/{index}.png", f"captions/{split}/{color}_{index}.png"):
                    (root / path).parent.mkdir(parents=True, exist_ok=True)
                    draw(color, random).save(root / path)
                captions.append([f"{color}_{index}.png", f"a {color} picture"])
        with open(root / "captions" / split / "metadata.csv", "w") as file:
            csv.writer(file).writerows(captions)
    return root


def run_of(folder: Path, output_dir: Path, task: str, **changes) -> dict:
    """The JSON of a short run."""
    run = {
        "model": str(folder / "base"),
        "task": task,
        "dataset": str(folder / ("classes" if task == "classification" else "captions")),
        "validation_split": "test",
        "output_dir": str(output_dir),
        "max_steps": 30,
        "per_device_train_batch_size": 16 if task == "classification" else 6,
        "learning_rate": 1e-2,
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    if task == "contrastive":
        run |= {"caption_column": "text", "distinct_column": "text"}
    return {**run, **changes}


def parse(run: dict) -> tuple:
    path = Path(run["output_dir"]).with_suffix(".json")
    path.write_text(json.dumps(run))
    return parse_arguments(FINE_TUNING, [str(path)])


LORA = {"train": "lora", "lora_rank": 4, "lora_target_modules": ["q_proj", "v_proj", "fc1", "fc2"]}


@pytest.mark.parametrize(
    "changes",
    [{"augmentation": AUGMENTATION}, {"train": "classifier", "learning_rate": 0.3}, {**LORA, "learning_rate": 0.03}],
    ids=["all", "classifier", "lora"],
)
def test_classification_improves_on_held_out_pictures(folder, tmp_path, changes):
    trainer = finetune(*parse(run_of(folder, tmp_path / "out", "classification", **changes)))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["before"]["eval_accuracy"] < 0.4 and results["after"]["eval_accuracy"] > 0.7
    assert results["after"]["eval_loss"] < results["before"]["eval_loss"]

    base, tuned = FDTModel.from_pretrained(folder / "base").state_dict(), trainer.model
    tuned = tuned.get_base_model() if changes.get("train") == "lora" else tuned
    tuned = {name.replace(".base_layer", ""): tensor for name, tensor in tuned.state_dict().items()}
    changed = {name for name in base.keys() & tuned.keys() if not torch.equal(base[name], tuned[name])}
    assert (not changed) if "train" in changes else "codebook" in changed


@pytest.mark.parametrize(
    "changes", [{"learning_rate": 3e-3, "max_steps": 60}, {**LORA, "augmentation": AUGMENTATION}], ids=["all", "lora"]
)
def test_contrastive_improves_on_held_out_pictures(folder, tmp_path, changes):
    finetune(*parse(run_of(folder, tmp_path / "out", "contrastive", **changes)))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    before, after = results["before"], results["after"]
    assert after["eval_loss"] < before["eval_loss"]
    for name in ("eval_image_to_text_R@1", "eval_text_to_image_R@1"):
        assert after[name] > before[name] + 0.25


def test_saved_classifier_runs_in_pipeline(folder, tmp_path):
    finetune(*parse(run_of(folder, tmp_path / "out", "classification", zero_shot_template="a {}")))
    classify = pipeline("image-classification", model=str(tmp_path / "out"))
    answers = classify(str(folder / "classes" / "test" / "red" / "0.png"), top_k=6)
    assert {answer["label"] for answer in answers} == set(COLORS) and answers[0]["label"] == "red"
    config = AutoModelForImageClassification.from_pretrained(tmp_path / "out").config
    assert config.label2id == {name: number for number, name in enumerate(sorted(COLORS))}

    # It goes on from its own classifier, if the classes are the same.
    run = run_of(folder, tmp_path / "next", "classification", model=str(tmp_path / "out"), max_steps=1)
    finetune(*parse(run))
    first, after = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("out", "next"))
    assert after["before"] == first["after"]
    shutil.copytree(folder / "classes" / "train", tmp_path / "fewer" / "train")
    shutil.rmtree(tmp_path / "fewer" / "train" / "red")
    run |= {"dataset": str(tmp_path / "fewer"), "validation_split": None, "validation_share": 0.2}
    with pytest.raises(ValueError, match="start from the checkpoint that it was made of"):
        build_trainer(*parse(run))


@pytest.mark.parametrize("changes", [{}, LORA], ids=["all", "lora"])
def test_classification_of_images_of_any_size_resumes(folder, tmp_path, changes):
    shutil.copytree(folder / "classes", tmp_path / "classes")
    for path in (tmp_path / "classes" / "train").glob("*/0.png"):
        Image.open(path).resize((50, 38)).save(path)
    changes = {**changes, "dataset": str(tmp_path / "classes"), "logging_steps": 1, "save_strategy": "steps"}
    path = tmp_path / "run.json"
    path.write_text(json.dumps(run_of(folder, tmp_path / "out", "classification", **changes)))
    argv = [str(path), "--max_steps", "4", "--save_steps", "2"]
    argv += ["--augmentation", '{"RandomHorizontalFlip": {"p": 0.5}}']  # as docs/finetuning.md says
    whole = finetune(*parse_arguments(FINE_TUNING, argv))
    shutil.rmtree(tmp_path / "out" / "checkpoint-4")
    resumed = finetune(*parse_arguments(FINE_TUNING, [*argv, "--resume_from_checkpoint", "true"]))
    losses, again = ([e["loss"] for e in t.state.log_history if "loss" in e] for t in (whole, resumed))
    assert len(losses) == 4 and losses == again


def test_zero_shot_start_is_the_zero_shot_classifier(folder, tmp_path):
    run = run_of(folder, tmp_path / "out", "classification", zero_shot_template="a {} picture")
    trainer = build_trainer(*parse(run))
    model, processor = FDTModel.from_pretrained(folder / "base").eval(), trainer.processing_class
    inputs = processor(images=[Image.new("RGB", (40, 40), "red")], return_tensors="pt")
    captions = processor(text=[f"a {color} picture" for color in sorted(COLORS)], return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs, **captions).logits_per_image
        # float32: the scale is applied to the captions instead of the pictures.
        torch.testing.assert_close(trainer.model.eval()(**inputs).logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("task", ["classification", "contrastive"])
def test_adapters_are_reloaded_and_merged(folder, tmp_path, task):
    run = run_of(folder, tmp_path / "adapters", task, **LORA, max_steps=3)
    adapted = finetune(*parse(run)).model.eval()
    run |= {"output_dir": str(tmp_path / "merged"), "merge_lora": True}
    finetune(*parse(run))
    assert not (tmp_path / "adapters" / "model.safetensors").exists()
    assert (tmp_path / "adapters" / "adapter_model.safetensors").stat().st_size < 100_000

    model_class = FDTForImageClassification if task == "classification" else FDTModel
    config = FDTConfig.from_pretrained(tmp_path / "adapters")
    base = model_class.from_pretrained(folder / "base", config=config)
    processor = FDTProcessor.from_pretrained(tmp_path / "adapters")
    inputs = processor(images=[Image.new("RGB", (40, 40), color) for color in COLORS], return_tensors="pt")
    if task == "contrastive":
        inputs |= processor(text=list(COLORS), return_tensors="pt")

    def logits_of(model) -> torch.Tensor:
        with torch.no_grad():
            output = model(**inputs)
        return output.logits if task == "classification" else output.logits_per_image

    expected = logits_of(adapted)
    if task == "contrastive":
        assert not torch.allclose(logits_of(base.eval()), expected, atol=1e-2)
    else:
        assert list(base.config.id2label.values()) == sorted(COLORS)
    reloaded = PeftModel.from_pretrained(base, str(tmp_path / "adapters")).eval()
    torch.testing.assert_close(logits_of(reloaded), expected, rtol=0, atol=0)
    merged, report = model_class.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    # float32: one product with the sum of two weights is not the sum of two products to the last bit.
    torch.testing.assert_close(logits_of(merged.eval()), expected, rtol=0, atol=1e-4)

    with pytest.raises(ValueError, match="holds adapters"):
        build_trainer(*parse({**run, "model": str(tmp_path / "adapters")}))


def test_frozen_batch_norms_keep_their_statistics(folder, tmp_path):
    base = save_base(tmp_path / "base", vision_config=RESNET)
    run = run_of(folder, tmp_path / "out", "classification", model=base, train="classifier", max_steps=2)
    model, frozen = finetune(*parse(run)).model, FDTModel.from_pretrained(base)
    statistics = [name for name, _ in frozen.named_buffers() if "running" in name]
    assert statistics and all(torch.equal(model.get_buffer(n), frozen.get_buffer(n)) for n in statistics)

    run |= {"train": "all", "output_dir": str(tmp_path / "all")}
    model = finetune(*parse(run)).model
    assert not any(torch.equal(model.get_buffer(n), frozen.get_buffer(n)) for n in statistics)

    run |= {**LORA, "output_dir": str(tmp_path / "lora")}
    with pytest.raises(ValueError, match="vision_tower.*convolution"):  # what a ResNet has instead
        build_trainer(*parse(run))
    run["lora_target_modules"] = ["convolution"]
    assert "lora" in str(build_trainer(*parse(run)).model)


def test_evaluation_sees_every_row_as_it_is(folder, tmp_path):
    run = run_of(folder, tmp_path / "out", "classification", augmentation=AUGMENTATION, per_device_eval_batch_size=16)
    trainer = build_trainer(*parse(run))
    batches = list(trainer.get_eval_dataloader())
    assert [len(batch["labels"]) for batch in batches] == [16, 2]
    pictures = [Image.open(path) for path in sorted((folder / "classes" / "test").glob("*/*.png"))]
    expected = trainer.processing_class(images=pictures, return_tensors="pt")["pixel_values"]
    assert torch.equal(torch.cat([batch["pixel_values"] for batch in batches]), expected)
    trained_on = next(iter(trainer.get_train_dataloader()))
    assert trainer.args.dataloader_drop_last and trained_on["pixel_values"].shape == (16, 3, 32, 32)


def test_a_share_is_held_out_and_a_list_of_captions_is_drawn_from(folder, tmp_path):
    rows = [
        {"image": Image.new("RGB", (32, 32), (number, 0, 0)), "caption": [f"first {number}", "second"]}
        for number in range(20)
    ]
    DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(str(tmp_path / "data"))
    changes = {"dataset": str(tmp_path / "data"), "validation_split": None, "validation_share": 0.25}
    changes |= {"caption_column": "caption", "distinct_column": None}
    run = run_of(folder, tmp_path / "out", "contrastive", **changes)
    first, again, other = (
        build_trainer(*parse({**run, "seed": seed, "output_dir": str(tmp_path / "out")})) for seed in (0, 0, 1)
    )
    held_out = first.eval_dataset["caption"][:]
    assert len(held_out) == 5 and all(caption.startswith("first") for caption in held_out)
    assert not {caption for caption, _ in first.train_dataset["caption"]} & set(held_out)
    assert again.eval_dataset["caption"][:] == held_out != other.eval_dataset["caption"][:]


def test_equal_captions_are_right_for_each_other():
    image_embeds = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]], dtype=np.float32)
    text_embeds = np.array([[1.0, 0.0], [1.0, 0.0], [0.9, 0.1]], dtype=np.float32)
    prediction = EvalPrediction(predictions=(image_embeds, text_embeds), label_ids=None)
    metrics = compute_retrieval(prediction, ["a cat", "a cat", "a dog"])
    # Picture 1 is nearer to "a cat" than to "a dog" (0.8 < 0.78), picture 2 finds its own; its caption does not.
    assert metrics["image_to_text_R@1"] == pytest.approx(1.0)
    assert metrics["text_to_image_R@1"] == pytest.approx(2 / 3)
    assert metrics["text_to_image_R@5"] == 1


def test_push_takes_processor_and_results_along(folder, tmp_path, monkeypatch):
    pushed = {}

    def upload_folder(repo_id, allow_patterns, **kwargs):
        pushed[repo_id] = set(allow_patterns)

    hub = SimpleNamespace(upload_folder=upload_folder, create_repo=lambda name, **_: SimpleNamespace(repo_id=name))
    monkeypatch.setattr("transformers.trainer.hf_api", lambda: hub)
    monkeypatch.setattr("run_scripts.hub.files.HfApi", lambda token: hub)
    run = run_of(folder, tmp_path / "out", "contrastive", max_steps=1, push_to_hub=True, hub_model_id="me/tuned")
    finetune(*parse(run))
    needed = {"model.safetensors", "config.json", "processor_config.json", "tokenizer.json", "results.json"}
    assert needed <= pushed["me/tuned"]


def dataset_of(path: Path, **splits) -> str:
    """A data set on disk, of splits by their columns; every row has a picture."""
    picture = Image.new("RGB", (32, 32), "red")
    for name, columns in splits.items():
        columns = {column: list(values) for column, values in columns.items()}
        num_rows = len(next(iter(columns.values())))
        splits[name] = Dataset.from_dict({"image": [picture] * num_rows, **columns})
    DatasetDict(splits).save_to_disk(str(path))
    return str(path)


def test_names_of_classes_become_numbers(folder, tmp_path):
    names = ["b", "a", "c"] * 6
    dataset = dataset_of(tmp_path / "data", train={"kind": names}, test={"kind": ["c", "b"]})
    run = run_of(folder, tmp_path / "out", "classification", dataset=dataset, label_column="kind")
    trainer = build_trainer(*parse(run))
    assert trainer.model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert trainer.train_dataset["kind"][:3] == [1, 0, 2] and trainer.eval_dataset["kind"][:] == [2, 1]


@pytest.mark.parametrize(
    "train, test, message",
    [
        (["a"] * 16, ["a"], "at least 2 classes in label_column='label', got 1"),
        (["a", "b"] * 8, ["c"], r"classes that the one to train on lacks: \['c'\]"),
        (["a", None] * 8, ["a"], "label_column='label' is empty in 8 rows, the first is row 1"),
    ],
)
def test_bad_labels_are_refused(folder, tmp_path, train, test, message):
    dataset = dataset_of(tmp_path / "data", train={"label": train}, test={"label": test})
    with pytest.raises(ValueError, match=message):
        finetune(*parse(run_of(folder, tmp_path / "out", "classification", dataset=dataset)))


def test_splits_of_different_classes_are_refused(folder, tmp_path):
    dataset = DatasetDict()
    for split, names in (("train", ["a", "b"]), ("test", ["b", "a"])):
        rows = {"image": [Image.new("RGB", (32, 32))] * 16, "label": [0, 1] * 8}
        dataset[split] = Dataset.from_dict(rows).cast_column("label", ClassLabel(names=names))
    dataset.save_to_disk(str(tmp_path / "data"))
    run = run_of(folder, tmp_path / "out", "classification", dataset=str(tmp_path / "data"))
    with pytest.raises(ValueError, match=r"\['a', 'b'\] and \['b', 'a'\]"):
        finetune(*parse(run))


def test_a_class_to_evaluate_that_never_trains_is_refused(folder, tmp_path):
    # Folders of classes: both splits have the names of either.
    for name in ("train/cat", "train/dog", "test/Cat", "test/dog"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (32, 32)).save(tmp_path / "pictures" / name / f"{number}.png")
    run = run_of(folder, tmp_path / "out", "classification", dataset=str(tmp_path / "pictures"))
    with pytest.raises(ValueError, match=r"classes that the one to train on lacks: \['Cat'\]"):
        finetune(*parse(run))


def test_empty_captions_are_refused(folder, tmp_path):
    dataset = dataset_of(tmp_path / "data", train={"text": [*"abcdef", " "]}, test={"text": ["a"]})
    run = run_of(folder, tmp_path / "out", "contrastive", dataset=dataset)
    with pytest.raises(ValueError, match="caption_column='text' holds no caption in row 6"):
        finetune(*parse(run))
    with pytest.raises(ValueError, match="config_name='small'"):
        finetune(*parse({**run, "config_name": "small"}))


def test_unreadable_picture_is_named(folder, tmp_path):
    shutil.copytree(folder / "classes", tmp_path / "classes")
    broken = tmp_path / "classes" / "test" / "red" / "1.png"
    broken.write_bytes(broken.read_bytes()[:1000])
    run = run_of(folder, tmp_path / "out", "classification", dataset=str(tmp_path / "classes"))
    with pytest.raises(ValueError, match="red/1.png cannot be decoded"):
        finetune(*parse(run))


@pytest.mark.parametrize(
    "task, changes, message",
    [
        ("classification", {"learning_rat": 0.1}, "learning_rat"),
        ("classification", {"label_column": "species"}, "label_column='species' is no column"),
        ("classification", {"image_column": "label"}, "image_column='label' must hold images"),
        ("classification", {"distinct_column": "label"}, "distinct_column needs task='contrastive'"),
        ("classification", {"validation_split": None}, "either validation_split or validation_share"),
        ("classification", {"validation_share": 0.1}, "either validation_split or validation_share"),
        ("classification", {"validation_split": None, "validation_share": 1.0}, "between 0 and 1, got 1.0"),
        ("classification", {"validation_split": "train"}, "must not be split"),
        ("classification", {"zero_shot_template": "a picture"}, "must hold {} once"),
        ("classification", {"per_device_train_batch_size": 64}, "global batch of 64 needs as many images"),
        ("classification", {"lora_rank": 4}, "lora_rank needs train='lora'"),
        ("classification", {"merge_lora": True}, "merge_lora needs train='lora'"),
        ("classification", {"lora_target_modules": ["fc1"]}, "lora_target_modules needs train='lora'"),
        ("classification", {"train": "lora"}, "needs a lora_rank of at least 1, got None"),
        ("contrastive", {**LORA, "lora_target_modules": ["q_proj", "wq"]}, "modules that LoRA can adapt.*q_proj"),
        ("contrastive", {"train": "classifier"}, "train='classifier' needs task='classification'"),
        ("contrastive", {"zero_shot_template": "{}"}, "zero_shot_template needs task='classification'"),
        ("classification", {"reseed_dead_codes": True}, "reseed_dead_codes needs task='contrastive' and train='all'"),
        ("contrastive", {**LORA, "logit_scale_max": 3.0}, "logit_scale_max needs task='contrastive' and train='all'"),
        ("contrastive", {"caption_column": "caption"}, "caption_column='caption' is no column"),
    ],
)
def test_bad_arguments_are_refused(folder, tmp_path, task, changes, message):
    with pytest.raises(ValueError, match=message):
        finetune(*parse(run_of(folder, tmp_path / "out", task, **changes)))


def test_other_checkpoints_are_refused(folder, tmp_path):
    CLIPConfig().save_pretrained(tmp_path / "clip")
    run = run_of(folder, tmp_path / "out", "contrastive", model=str(tmp_path / "clip"))
    with pytest.raises(ValueError, match="must hold an FDT model, it holds one of type 'clip'"):
        finetune(*parse(run))
    with pytest.raises(ValueError, match="model='.*nowhere' cannot be loaded"):
        finetune(*parse({**run, "model": str(tmp_path / "nowhere")}))
    FDTVisionModel.from_pretrained(folder / "base").save_pretrained(tmp_path / "half")
    FDTProcessor.from_pretrained(folder / "base").save_pretrained(tmp_path / "half")
    with pytest.raises(ValueError, match="FDTModel needs a text_tower"):
        finetune(*parse({**run, "model": str(tmp_path / "half")}))


def test_used_output_dir_is_refused(folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="is not empty"):
        finetune(*parse(run_of(folder, tmp_path / "out", "classification")))


def test_lora_without_peft_names_the_extra(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"\[train\]"):
        finetune(*parse(run_of(folder, tmp_path / "out", "classification", **LORA)))


def test_flags_and_json_give_the_same_arguments(folder, tmp_path):
    run = run_of(folder, tmp_path / "out", "contrastive", augmentation=AUGMENTATION, **LORA)
    flags = []
    for name, value in run.items():
        values = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
        flags += [f"--{name}", *map(str, values)]
    for by_json, by_flags in zip(parse(run)[:2], parse_arguments(FINE_TUNING, flags)[:2], strict=True):
        assert by_json == by_flags


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("finetune_*.json")), ids=lambda config: config.stem)
def test_configs_are_complete(config):
    arguments, data_arguments, training_arguments = parse_arguments(FINE_TUNING, [str(config)])
    assert training_arguments.output_dir == f"outputs/{config.stem}" and data_arguments.dataset.startswith("data/")


@pytest.mark.slow
def test_two_processes_with_adapters_equal_one(folder, tmp_path):
    # Plain gradient steps: Adam's first ones are the signs of gradients, and those near 0 depend on rounding.
    changes = {**LORA, "max_steps": 2, "optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0}
    run = run_of(folder, tmp_path / "one", "contrastive", **changes, per_device_eval_batch_size=4)
    finetune(*parse(run))
    run |= {"output_dir": str(tmp_path / "two"), "per_device_train_batch_size": 3}
    parse(run)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "run_scripts.run_finetuning", str(tmp_path / "two.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, cwd=Path(__file__).parents[1], timeout=300)

    one, two = (json.loads((tmp_path / name / "results.json").read_text())["before"] for name in ("one", "two"))
    # The same embeddings in the same order; the loss depends on the batches of evaluation.
    recalls = [name for name in one if "R@" in name]
    assert len(recalls) == 6 and all(one[name] == two[name] for name in recalls)
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys() and any(weight.abs().max() > 1e-3 for n, weight in one.items() if "lora_B" in n)
    for name, weight in one.items():
        # float32: two steps with the mean of two halves of a gradient.
        torch.testing.assert_close(two[name], weight, rtol=0, atol=1e-5, msg=name)


def test_results_are_printed_as_what_they_are():
    before = {"eval_loss": 2.5, "eval_accuracy": 0.25, "eval_image_to_text_R@1": 0.5, "eval_median_rank": 4.5}
    assert format_results({"before": before, "after": before}, 8).splitlines()[2:] == [
        "| loss | 2.500 | 2.500 |",
        "| accuracy | 25.0% | 25.0% |",
        "| image_to_text_R@1 | 50.0% | 50.0% |",
        "| median_rank | 4.5 | 4.5 |",
    ]
