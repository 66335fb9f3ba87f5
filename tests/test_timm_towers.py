"""
Image towers of timm, by a stand-in of the same interface: timm asks for torchvision, which is not at hand for every
torch. No test here runs timm itself.
"""

import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AutoModel, TimmWrapperConfig
from transformers.models.timm_wrapper import configuration_timm_wrapper, modeling_timm_wrapper
from transformers.utils import import_utils

from modeling_fdt import FDTConfig, FDTModel, FDTProcessor
from modeling_fdt.explanation_fdt import get_patch_grid
from modeling_fdt.image_processing_fdt import build_timm_image_processor
from run_scripts.training.arguments import ModelArguments
from run_scripts.training.pretraining import build_model
from tests.conftest import build_tiny_config
from tests.test_towers import SMALL_TEXT, find_gradients
from tests.test_warm_start import save_clip


DATA_CONFIG = {"input_size": [3, 32, 32], "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center"}
DATA_CONFIG |= {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}


class PatchEmbed(nn.Module):
    def __init__(self, dim: int, in_chans: int):
        super().__init__()
        self.patch_size, self.img_size = (8, 8), (32, 32)
        self.proj = nn.Conv2d(in_chans, dim, 8, stride=8)


class StandIn(nn.Module):
    """What TimmWrapperModel and FDT use of a timm model; each architecture's tokens are told apart by their values."""

    def __init__(self, architecture: str, in_chans: int = 3):
        super().__init__()
        self.architecture, self.num_features = architecture, 24
        self.pretrained_cfg = {**DATA_CONFIG, "input_size": (3, 32, 32)}
        if architecture == "convnext":
            self.stem = nn.Conv2d(in_chans, 24, 8, stride=8)
        else:
            self.patch_embed = PatchEmbed(24, in_chans)
        if architecture == "vit":
            self.num_prefix_tokens = 2
            self.cls_token, self.reg_token = nn.Parameter(torch.ones(1, 1, 24)), nn.Parameter(torch.ones(1, 1, 24))
        if architecture == "swin":
            self.output_fmt = "NHWC"
        self.norm, self.fc_norm = nn.LayerNorm(24), nn.LayerNorm(24)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        pass

    def forward_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        stem = self.stem if self.architecture == "convnext" else self.patch_embed.proj
        features = self.norm(stem(pixel_values).permute(0, 2, 3, 1))
        if self.architecture == "swin":
            return features
        if self.architecture == "convnext":
            return features.permute(0, 3, 1, 2)
        prefix = torch.cat([self.cls_token, self.reg_token], dim=1).expand(len(features), -1, -1)
        return torch.cat([prefix, features.flatten(1, 2)], dim=1)

    def forward_head(self, features: torch.Tensor) -> torch.Tensor:
        return self.fc_norm(features.flatten(1).new_zeros(len(features), 24))


@pytest.fixture(autouse=True)
def timm(monkeypatch):
    def create_model(architecture: str, pretrained: bool, num_classes: int, **arguments) -> StandIn:
        assert not pretrained and num_classes == 0  # the weights are the checkpoint's, and there is no classifier
        return StandIn(architecture, **arguments)

    module = SimpleNamespace(create_model=create_model, __version__="stand-in")
    monkeypatch.setitem(sys.modules, "timm", module)
    monkeypatch.setitem(import_utils.BACKENDS_MAPPING, "timm", (lambda: True, ""))
    monkeypatch.setattr(modeling_timm_wrapper, "timm", module, raising=False)
    monkeypatch.setattr(configuration_timm_wrapper, "infer_imagenet_subset", lambda config: None, raising=False)


def build_timm_model(architecture: str, **fields) -> FDTModel:
    return FDTModel(
        build_tiny_config(
            vision_config={"model_type": "timm_wrapper", "architecture": architecture, **fields},
            text_config=SMALL_TEXT,
        )
    )


INPUTS = {
    "pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
    "input_ids": torch.arange(12).view(2, 6) + 3,
}


@pytest.mark.parametrize("architecture", ["vit", "swin", "convnext"])
def test_the_built_tower_tells_what_its_configuration_lacks(architecture):
    model = build_timm_model(architecture)
    config = model.config.vision_config
    assert (config.hidden_size, config.num_channels) == (24, 3)
    assert getattr(config, "patch_size", None) == (None if architecture == "convnext" else 8)
    assert getattr(config, "image_size", None) == (None if architecture == "convnext" else 32)

    grounded = []
    model.vision_grounding.register_forward_pre_hook(lambda module, arguments: grounded.append(arguments[0]))
    hidden_states = model.eval()(**INPUTS).vision_model_output.last_hidden_state
    tower = model.vision_tower.timm_model
    stem = tower.stem if architecture == "convnext" else tower.patch_embed.proj
    patches = tower.norm(stem(INPUTS["pixel_values"]).flatten(2).transpose(1, 2))
    torch.testing.assert_close(grounded[0], patches)
    assert get_patch_grid(model, hidden_states, INPUTS["pixel_values"]) == (4, 4)
    assert model.explain(**INPUTS, top_k=2).patch_scores.shape == (2, 2, 4, 4)


@pytest.mark.parametrize("architecture", ["vit", "swin", "convnext"])
def test_every_trained_parameter_gets_a_gradient(architecture):
    model = build_timm_model(architecture).train()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert find_gradients(model, INPUTS).keys() == trained
    assert {f"vision_tower.timm_model.fc_norm.{name}" for name in ("weight", "bias")}.isdisjoint(trained)


@pytest.mark.parametrize("architecture", ["vit", "swin"])
def test_what_is_saved_is_loaded(architecture, tmp_path):
    model = build_timm_model(architecture).eval()
    model.save_pretrained(tmp_path)
    reloaded = AutoModel.from_pretrained(tmp_path)
    assert reloaded.config.vision_config.hidden_size == 24
    torch.testing.assert_close(reloaded(**INPUTS).logits_per_image, model(**INPUTS).logits_per_image)


def test_one_command_from_a_timm_checkpoint(tmp_path):
    source = modeling_timm_wrapper.TimmWrapperModel(TimmWrapperConfig(architecture="vit", pretrained_cfg=DATA_CONFIG))
    source.save_pretrained(tmp_path / "vision")
    save_clip(tmp_path / "text", "clip")
    arguments = ModelArguments(vision_model=str(tmp_path / "vision"), text_model=str(tmp_path / "text"))
    model, processor = build_model(arguments)
    for name, weight in source.state_dict().items():
        assert torch.equal(model.vision_tower.state_dict()[name], weight)

    processor.save_pretrained(tmp_path / "fdt")
    image_processor = FDTProcessor.from_pretrained(tmp_path / "fdt").image_processor
    image = Image.effect_noise((48, 60), 80).convert("RGB")
    # 32 pixels are 0.9 of the short side, rounded down: 35.
    resized = np.asarray(image.resize((35, 43), Image.Resampling.BICUBIC).crop((2, 6, 34, 38))) / 255
    expected = torch.tensor((resized - 0.5) / 0.25, dtype=torch.float32).permute(2, 0, 1)
    pixel_values = image_processor(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixel_values[0], expected)


@pytest.mark.parametrize(
    "changes",
    [{"input_size": [3, 32, 48]}, {"input_size": [1, 32, 32]}, {"interpolation": "random"}, {"crop_mode": "border"}],
)
def test_a_transform_that_cannot_be_expressed_is_refused(changes):
    with pytest.raises(ValueError, match=re.escape(repr(*changes.values()))):
        build_timm_image_processor({**DATA_CONFIG, **changes})


def test_channels_are_those_of_the_first_layer():
    model = build_timm_model("vit", model_args={"in_chans": 1})
    model(pixel_values=torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match=r"of shape \(batch_size, 1, height, width\)"):
        model(pixel_values=torch.zeros(1, 3, 32, 32))


def test_what_cannot_be_grounded_is_refused():
    with pytest.raises(ValueError, match="`features_only` in its `model_args` gives several feature maps"):
        FDTConfig(vision_config={"model_type": "timm_wrapper", "model_args": {"features_only": True}})
    with pytest.raises(ValueError, match="a timm_wrapper tower has no patch embedding"):
        FDTModel(
            build_tiny_config(
                vision_config={"model_type": "timm_wrapper", "architecture": "vit"}, freeze_patch_embedding=True
            )
        )
    model = build_timm_model("vit")
    model.config.vision_config.hidden_size = 32
    with pytest.raises(ValueError, match="of a timm_wrapper tower has hidden_size=32, but the tower 24"):
        FDTModel(model.config)
