"""transformers' own common model tests, run on FDT and, beside it, on CLIP: what CLIP passes, FDT must pass.

They ship in transformers' source distribution only, so this file is not collected by default; `make test-common`
fetches the distribution of the installed release and names its folder in TRANSFORMERS_SOURCE.
"""

import os
import sys
import types
import unittest

import torch
from transformers import (
    CLIPConfig,
    CLIPForImageClassification,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
)

from modeling_fdt import FDTConfig, FDTForImageClassification, FDTModel, FDTTextModel, FDTVisionModel


def import_common_tests(source: str) -> tuple[type, type]:
    # Their package is called `tests`, as ours is, and names three modules that are not distributed.
    package = types.ModuleType("tests")
    package.__path__ = [os.path.join(source, "tests")]
    stubs = {
        "tests": package,
        "tests.exporters": types.ModuleType("tests.exporters"),
        "tests.exporters.test_export": types.SimpleNamespace(ExportTesterMixin=type("ExportTesterMixin", (), {})),
        "tests.generation": types.ModuleType("tests.generation"),
        "tests.generation.test_utils": types.SimpleNamespace(GenerationTesterMixin=type("GenerationMixin", (), {})),
        "tests.utils": types.ModuleType("tests.utils"),
        "tests.utils.test_configuration_utils": types.SimpleNamespace(config_common_kwargs={}),
    }
    ours = {name: sys.modules[name] for name in stubs if name in sys.modules}
    sys.modules.update(stubs)
    try:
        from tests.test_configuration_common import ConfigTester
        from tests.test_modeling_common import ModelTesterMixin
    finally:
        sys.modules.update(ours)
    return ModelTesterMixin, ConfigTester


ModelTesterMixin, ConfigTester = import_common_tests(os.environ["TRANSFORMERS_SOURCE"])


class ModelTester:
    """What the mixin asks of a model's tester: sizes, a configuration, inputs."""

    batch_size, image_size, patch_size = 13, 30, 2
    hidden_size, num_hidden_layers, num_attention_heads, is_training, num_labels = 32, 2, 4, False, 2

    def __init__(self, inputs: str, build_config):
        self.inputs, self.get_config = inputs, build_config
        self.seq_length = 226 if inputs == "images" else 7
        self.text_kwargs = self.vision_kwargs = {"batch_size": self.batch_size}

    def prepare_config_and_inputs_for_common(self):
        inputs = {}
        if self.inputs != "images":
            inputs["input_ids"] = torch.randint(99, (self.batch_size, 7))
            inputs["attention_mask"] = torch.ones(self.batch_size, 7, dtype=torch.long)
        if self.inputs != "texts":
            inputs["pixel_values"] = torch.rand(self.batch_size, 3, 30, 30)
        if self.inputs == "both":
            inputs["return_loss"] = True
        return self.get_config(), inputs


LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
TEXT = {**LAYERS, "vocab_size": 99, "max_position_embeddings": 512, "bos_token_id": 97, "eos_token_id": 98}
VISION = {**LAYERS, "image_size": 30, "patch_size": 2}


def build_fdt_config() -> FDTConfig:
    return FDTConfig(text_config=TEXT, vision_config=VISION, codebook_size=64, codebook_dim=32)


def build_clip_config() -> CLIPConfig:
    return CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=64)


def build_test_case(model_class: type, inputs: str, build_config) -> type:
    def set_up(self):
        self.model_tester = ModelTester(inputs, build_config)
        self.config_tester = ConfigTester(self, config_class=type(build_config()), has_text_modality=False)

    members = {
        "all_model_classes": (model_class,),
        "has_attentions": inputs != "both",
        "test_resize_embeddings": False,
        "setUp": set_up,
        "test_config": lambda self: self.config_tester.run_common_tests(),
    }
    # What transformers' own test file of CLIP skips or replaces as well: CLIP does not pass the common form.
    unfit = {
        "both": ["test_hidden_states_output", "test_retain_grad_hidden_states_attentions"],
        "images": ["test_inputs_embeds", "test_model_get_set_embeddings"],
        "texts": [],
    }[inputs]
    if model_class is CLIPModel:
        unfit.append("test_model_get_set_embeddings")
    for name in unfit:
        members[name] = unittest.skip("CLIP does not pass it either")(lambda self: None)
    return type(f"Test{model_class.__name__}", (ModelTesterMixin, unittest.TestCase), members)


TestFDTModel = build_test_case(FDTModel, "both", build_fdt_config)
TestFDTVisionModel = build_test_case(FDTVisionModel, "images", build_fdt_config)
TestFDTTextModel = build_test_case(FDTTextModel, "texts", build_fdt_config)
TestFDTForImageClassification = build_test_case(FDTForImageClassification, "images", build_fdt_config)
TestCLIPModel = build_test_case(CLIPModel, "both", build_clip_config)
TestCLIPVisionModel = build_test_case(CLIPVisionModel, "images", lambda: CLIPVisionConfig(**VISION))
TestCLIPTextModel = build_test_case(CLIPTextModel, "texts", lambda: CLIPTextConfig(**TEXT))
TestCLIPForImageClassification = build_test_case(CLIPForImageClassification, "images", build_clip_config)
