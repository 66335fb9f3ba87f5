"""What is frozen stays as it is, computes no gradient and is in evaluation mode; the rest trains."""

import pytest
import torch
from torch import nn
from transformers import ResNetConfig

from modeling_fdt import FDTModel
from run_scripts.training.freezing import freeze_parts, keep_frozen_in_evaluation
from tests.conftest import build_tiny_config
from tests.test_trainer import make_trainer


def frozen_names(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def test_a_frozen_tower_keeps_its_weights_and_the_rest_trains(tmp_path):
    torch.manual_seed(0)
    model = FDTModel(build_tiny_config())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = make_trainer(model, tmp_path, freeze=["vision_tower", "text_tower"], save_strategy="steps", save_steps=4)
    trainer.train()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert not any("tower" in name for name in changed)
    assert {name for name in before if "tower" not in name} == changed
    assert all(
        parameter.grad is None for tower in (model.vision_tower, model.text_tower) for parameter in tower.parameters()
    )
    state = torch.load(tmp_path / "checkpoint-4" / "optimizer.pt", weights_only=True)
    assert len(state["state"]) == len(changed)  # nothing is remembered of what does not train


def test_a_frozen_tower_builds_no_graph_and_is_in_evaluation_mode(inputs):
    config = build_tiny_config(vision_config=ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]))
    config.text_config.attention_dropout = 0.5
    model = FDTModel(config)
    freeze_parts(model, ["vision_tower", "text_tower"])
    keep_frozen_in_evaluation(model)
    statistics = model.vision_tower.embedder.embedder.normalization.running_mean.clone()
    outputs = [model.train()(**inputs) for _ in range(2)]
    assert torch.equal(outputs[0].text_embeds, outputs[1].text_embeds)
    assert torch.equal(model.vision_tower.embedder.embedder.normalization.running_mean, statistics)
    assert not outputs[0].vision_model_output.last_hidden_state.requires_grad
    assert not outputs[0].text_model_output.last_hidden_state.requires_grad
    assert outputs[0].loss.requires_grad and model.training


def test_all_but_the_last_layers():
    model = FDTModel(build_tiny_config())
    unused, number = frozen_names(model), len(model.vision_tower.encoder.layers)
    freeze_parts(model, ["vision_tower[:-1]"])
    newly = frozen_names(model) - unused
    earlier = tuple(f"vision_tower.encoder.layers.{layer}." for layer in range(number - 1))
    assert {name for name in newly if ".layers." in name} == {
        name for name, _ in model.named_parameters() if name.startswith(earlier)
    }
    assert any("embeddings" in name for name in newly) and not any("post_layernorm" in name for name in newly)
    assert all(name.startswith("vision_tower.") for name in newly)


@pytest.mark.parametrize(
    "part, message",
    [
        ("codebook", "must name parts of"),
        ("vision_grounding", "must name parts of"),
        ("vision_tower[-2:]", "must name parts of"),
        ("vision_tower[:-9]", "must leave 1 to"),
        ("text_tower[:-0]", "must leave 1 to"),
    ],
)
def test_what_cannot_be_frozen_is_refused(part, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make_trainer(FDTModel(build_tiny_config()), tmp_path, freeze=[part])
