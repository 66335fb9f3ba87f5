"""DeCLIP's objective in training: exact under accumulation, resumed exactly, and nothing of it in what is exported."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPModel

from modeling_fdt import FDTModel
from run_scripts.benchmarks.benchmark_declip import DeclipBenchmarkArguments
from run_scripts.benchmarks.benchmark_declip import main as benchmark_declip
from run_scripts.data.text_views import NO_LABEL
from run_scripts.data.two_views import TwoViewCollator
from run_scripts.training.arguments import ObjectiveArguments
from run_scripts.training.declip import DECLIP_NAME, DeclipTrainer
from run_scripts.training.pretraining import train
from run_scripts.training.study import count_saved_parameters
from tests.conftest import build_tiny_config
from tests.declip_run import assert_same_run, collate, make_pairs, make_trainer, run_declip
from tests.distributed_process import make_arguments, make_clip
from tests.test_declip_losses import cross_entropy, naive_multi_view, naive_nearest, naive_one_way, naive_simsiam
from tests.test_run_pretraining import losses_of, parse, tiny_run


def batch_norm(rows: torch.Tensor, layer: torch.nn.BatchNorm1d) -> torch.Tensor:
    """By its definition, over the whole batch."""
    normalised = (rows - rows.mean(dim=0)) / (rows.var(dim=0, unbiased=False) + layer.eps).sqrt()
    return normalised * layer.weight + layer.bias


def naive_heads(heads: torch.nn.Module, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Projector and predictor, layer by layer."""
    layers = list(heads.simsiam.projector)
    for linear, norm in ((0, 1), (3, 4), (6, 7)):
        rows = batch_norm(rows @ layers[linear].weight.T + layers[linear].bias, layers[norm])
        rows = rows.clamp(min=0) if norm < 7 else rows
    first, norm, _, second = heads.simsiam.predictor
    hidden = batch_norm(rows @ first.weight.T + first.bias, norm).clamp(min=0)
    return rows, hidden @ second.weight.T + second.bias


def test_the_loss_is_the_weighted_sum_of_the_terms_twins(tmp_path):
    trainer = make_trainer(str(tmp_path), max_steps=1, per_device_train_batch_size=8)
    trainer.begin_run(None)
    model, queue, batch = trainer.model.train(), trainer.queue.features.tolist(), collate(make_pairs())
    with torch.no_grad():
        inputs = {name: values for name, values in batch.items() if name != "token_labels"}
        outputs = model(**inputs, return_loss=False)
        sums = outputs.image_code_weights @ model.codebook
        heads = [naive_heads(model.declip, rows) for rows in sums.chunk(2)]
        images, texts = (rows.chunk(2) for rows in (outputs.image_embeds, outputs.text_embeds))
        images, texts = ([rows.tolist() for rows in views] for views in (images, texts))
        words = model.declip.token_classifier(outputs.text_model_output.last_hidden_state[:8]).tolist()
    scale = model.capped_logit_scale.exp().item()
    neighbors = [naive_nearest(rows, queue) for rows in texts]
    words = [
        cross_entropy(words[row][place], label)
        for row, labels in enumerate(batch["token_labels"].tolist())
        for place, label in enumerate(labels)
        if label != NO_LABEL
    ]
    expected = {
        "multi_view_loss": naive_multi_view(images, texts, scale),
        "nearest_neighbor_loss": sum(naive_one_way(i, n, scale) for i in images for n in neighbors) / 4,
        "simsiam_loss": naive_simsiam(*([rows.tolist() for rows in views] for views in zip(*heads, strict=True))),
        "masked_language_loss": sum(words) / len(words),
    }
    trainer.train()
    log = trainer.state.log_history[0]
    for name, value in expected.items():  # a float32 model: its numbers have seven digits
        assert log[name] == pytest.approx(value, rel=1e-6, abs=1e-6), name
    weights = {"multi_view": 0.4, "nearest_neighbor": 0.2, "simsiam": 0.2, "masked_language": 0.2}
    total = sum(weight * expected[f"{name}_loss"] for name, weight in weights.items())
    assert log["loss"] == pytest.approx(total, rel=1e-6)
    assert len(words) == 14 and log["pairs_seen"] == 8


def test_sums_of_codes_have_the_direction_of_the_embeddings(tmp_path):
    for activation in ("sparsemax", "sigmoid"):
        model = FDTModel(build_tiny_config(grounding_activation=activation))
        trainer = DeclipTrainer(
            model, make_arguments(str(tmp_path)), objective=ObjectiveArguments(objective="declip"), train_dataset=[{}]
        )
        output = model.get_image_features(torch.randn(2, 3, 32, 32))
        sums = trainer._sum_codes(output.image_code_weights)
        torch.testing.assert_close(torch.nn.functional.normalize(sums, dim=-1), output.image_embeds)
        shares = output.image_code_weights / output.image_code_weights.sum(dim=-1, keepdim=True)
        torch.testing.assert_close(sums, shares @ model.codebook)


@pytest.mark.parametrize("num_micro_batches", [2, 4])
def test_accumulation_is_exact_in_every_term_and_in_batch_norm(num_micro_batches, tmp_path):
    expected = run_declip(str(tmp_path / "whole"), per_device_train_batch_size=8)
    divided = run_declip(
        str(tmp_path / "divided"),
        per_device_train_batch_size=8 // num_micro_batches,
        gradient_accumulation_steps=num_micro_batches,
    )
    assert_same_run(divided, expected)
    names = [name for name in expected["moves"] if name.startswith("declip.")]
    # A bias before a batch norm is without effect.
    assert len(names) == 32 and all(expected["moves"][name].any() for name in names if not name.endswith("bias"))


def numbers_of(trainer: DeclipTrainer) -> list[dict]:
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [{name: value for name, value in entry.items() if name != "pairs_per_second"} for entry in entries]


def test_a_resumed_run_goes_on_as_the_one_never_stopped(tmp_path):
    changes = {"max_steps": 6, "learning_rate": 0.1, "save_strategy": "steps", "save_steps": 2}
    changes |= {"optim": "adamw_torch", "weight_decay": 0.1, "dead_code_steps": 2, "reseed_dead_codes": True}
    whole = make_trainer(str(tmp_path), **changes)
    whole.train()
    for step in (2, 4):
        resumed = make_trainer(str(tmp_path), **changes | {"save_strategy": "no"})
        resumed.train(str(tmp_path / f"checkpoint-{step}"))
        assert numbers_of(resumed) == numbers_of(whole)
        for name, tensor in whole.model.state_dict().items():
            assert torch.equal(tensor, resumed.model.state_dict()[name]), name
        assert torch.equal(whole.queue.features, resumed.queue.features)
        assert whole.queue.position == resumed.queue.position == 16  # 48 captions in 32 places
    assert len({entry["loss"] for entry in numbers_of(whole)}) == 6


def test_heads_and_queue_can_start_another_run(tmp_path):
    trainer = make_trainer(str(tmp_path / "one"), max_steps=1, save_strategy="steps")
    trainer.train()
    path = tmp_path / "one" / "checkpoint-1" / DECLIP_NAME
    other = make_trainer(str(tmp_path / "other"), {"declip_heads": str(path)})
    other.begin_run(None)
    assert torch.equal(other.queue.features, trainer.queue.features) and other.queue.position == 8
    heads = trainer.model.declip.state_dict()
    assert all(torch.equal(tensor, heads[name]) for name, tensor in other.model.declip.state_dict().items())
    with pytest.raises(ValueError, match=r"queue.features: \(32, 32\), not \(16, 32\)"):
        make_trainer(str(tmp_path / "other"), {"declip_heads": str(path), "queue_size": 16}).begin_run(None)
    with pytest.raises(ValueError, match="declip_heads='.*nowhere' cannot be read"):
        make_trainer(str(tmp_path / "other"), {"declip_heads": str(tmp_path / "nowhere")}).begin_run(None)


def test_weight_decay_spares_norms_of_the_heads(tmp_path):
    trainer = make_trainer(str(tmp_path))
    decayed = {name for name in trainer.get_decay_parameter_names(trainer.model) if name.startswith("declip.")}
    linear = [f"simsiam.projector.{n}" for n in (0, 3, 6)] + [f"simsiam.predictor.{n}" for n in (0, 3)]
    assert decayed == {f"declip.{name}.weight" for name in (*linear, "token_classifier")}


# The script


def declip_run(tmp_path, **changes) -> dict:
    return tiny_run(tmp_path, objective="declip", queue_size=64, **changes)


def test_a_run_ends_in_an_fdt_model_without_heads(tmp_path, caplog):
    run = declip_run(tmp_path, validation_split="train", eval_strategy="steps", eval_steps=3, save_strategy="steps")
    trainer = train(*parse(tmp_path, run))
    assert trainer.queue.position == 48 and len(losses_of(trainer)) == 3
    assert any("eval_rsum" in entry for entry in trainer.state.log_history)
    for folder in (tmp_path / "output", tmp_path / "output" / "checkpoint-3"):
        model, report = FDTModel.from_pretrained(folder, output_loading_info=True)
        assert not any(report.values()), report
        config = json.loads((folder / "config.json").read_text())
        assert config["architectures"] == ["FDTModel"] and config["auto_map"]["AutoModel"] == "modeling_fdt.FDTModel"
        assert load_file(folder / "model.safetensors").keys() == model.state_dict().keys()
    assert count_saved_parameters(trainer.model) == model.num_parameters() < trainer.model.num_parameters()
    heads = load_file(tmp_path / "output" / "checkpoint-3" / DECLIP_NAME)
    assert heads.keys() == trainer.model.declip.state_dict().keys() | {"queue.features", "queue.position"}
    caplog.clear()
    train(*parse(tmp_path, run | {"max_steps": 3, "resume_from_checkpoint": "true"}))
    assert "missing keys" not in caplog.text


def test_the_objective_is_part_of_the_recipe(tmp_path):
    run = declip_run(tmp_path, max_steps=1, save_strategy="steps")
    train(*parse(tmp_path, run))
    with pytest.raises(ValueError, match="simsiam_weight is 0.1 and was not given"):
        train(*parse(tmp_path, run | {"simsiam_weight": 0.1, "resume_from_checkpoint": "true"}))


@pytest.mark.parametrize("augment_on_device", [False, True])
def test_two_views_of_each_pair(tiny_processor, augment_on_device):
    from PIL import Image

    augmentation = {"RandomResizedCrop": {"size": [32, 32]}, "ColorJitter": {"brightness": 0.4, "p": 1.0}}
    image = Image.linear_gradient("L").convert("RGB")
    rows = [{"image": image, "caption": "a large dog and a small cat in front of a car"} for _ in range(6)]
    collator = TwoViewCollator(tiny_processor, augmentation, augment_on_device, edits=["deletion"])
    torch.manual_seed(0)
    batch = collator(rows)
    pixels = batch["pixel_values"]
    pixels = collator.augmentation.vary_batch(*pixels) if augment_on_device else pixels
    assert pixels.shape == (12, 3, 32, 32) and len(pixels.unique(dim=0)) == 12
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (12, batch["token_labels"].shape[1])
    labels, mask_id = batch["token_labels"], tiny_processor.tokenizer.mask_token_id
    assert labels.shape[0] == 6 and (labels != NO_LABEL).any()
    restored = torch.where(labels == NO_LABEL, batch["input_ids"][:6], labels)
    assert len(restored.unique(dim=0)) == 1  # one caption
    assert (batch["input_ids"][:6] == mask_id).any() and not (batch["input_ids"][6:] == mask_id).any()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"objective": "clip"}, "objective must be one of"),
        ({"objective": "contrastive"}, "queue_size=64 needs objective='declip'"),
        ({"queue_size": 0}, "queue_size must be at least 1, got 0"),
        ({"multi_view_weight": -1.0}, "multi_view_weight must be at least 0, got -1.0"),
        ({"text_edits": ["synonyms"]}, "text_edits must be some of .*, got .'synonyms'."),
        ({"augmentation": None}, "needs augmentation: without it two views of an image are the same"),
        (
            {
                "model_config": {"model_type": "clip"},
                "image_processor_config": None,
                "augmentation": {"ColorJitter": {}},
            },
            "trains an FDTModel, got a CLIPModel",
        ),
    ],
)
def test_bad_arguments_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(*parse(tmp_path, declip_run(tmp_path) | changes))


def test_another_model_is_refused(tmp_path):
    model = make_clip()
    assert isinstance(model, CLIPModel)
    with pytest.raises(ValueError, match="objective='declip' trains an FDTModel, got a CLIPModel"):
        DeclipTrainer(model, make_arguments(str(tmp_path)), objective=ObjectiveArguments(objective="declip"))


def test_benchmark_compares_the_objectives(tmp_path, capsys):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(declip_run(tmp_path)))
    benchmark_declip(DeclipBenchmarkArguments(config=str(path), num_steps=2))
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert re.fullmatch(r"\| contrastive (\| [0-9.]+ \| 1.00 ){2}\|", lines[0])
    assert re.fullmatch(r"\| declip (\| [0-9.]+ \| [0-9.]+ ){2}\|", lines[1])
