"""Small models and inputs that the tests share. Everything runs offline and on CPU."""

import os
from pathlib import Path


# Before any import of transformers: no test may reach the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from modeling_fdt import FDTConfig, FDTImageProcessor, FDTModel, FDTProcessor, FDTTokenizer


needs_auto_image_processor = pytest.mark.skipif(
    getattr(AutoImageProcessor, "is_dummy", False), reason="transformers 5.17 guards AutoImageProcessor by torchvision"
)


def build_tiny_config(**kwargs) -> FDTConfig:
    """Two-layer towers of width 32; 64 codes at a temperature at which some but not all are active."""
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    fields = {
        "text_config": small,
        "vision_config": {**small, "image_size": 32, "patch_size": 8},
        "codebook_size": 64,
        "codebook_dim": 32,
        "grounding_temperature": 5.0,
    }
    return FDTConfig(**{**fields, **kwargs})


def build_tiny_processor(tokenizer: FDTTokenizer) -> FDTProcessor:
    image_processor = FDTImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return FDTProcessor(image_processor=image_processor, tokenizer=tokenizer)


def save_tiny_checkpoint(folder: Path, tokenizer: FDTTokenizer) -> None:
    """A model, always the same, and its processor."""
    torch.manual_seed(0)
    FDTModel(build_tiny_config()).save_pretrained(folder)
    build_tiny_processor(tokenizer).save_pretrained(folder)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def tiny_config() -> FDTConfig:
    return build_tiny_config()


@pytest.fixture
def tiny_model(tiny_config: FDTConfig) -> FDTModel:
    return FDTModel(tiny_config).eval()


@pytest.fixture(scope="session")
def tokenizer() -> FDTTokenizer:
    return FDTTokenizer()


@pytest.fixture
def tiny_processor(tokenizer: FDTTokenizer) -> FDTProcessor:
    return build_tiny_processor(tokenizer)


@pytest.fixture
def images() -> list[Image.Image]:
    """Three pictures of noise, of different sizes."""
    random = np.random.default_rng(0)
    sizes = [(40, 50), (64, 33), (37, 37)]
    return [Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


@pytest.fixture
def captions() -> list[str]:
    return ["a cat", "two dogs on the grass, one of them brown", "Hello!"]


@pytest.fixture
def inputs(tiny_processor: FDTProcessor, images: list, captions: list) -> dict[str, torch.Tensor]:
    return dict(tiny_processor(images=images, text=captions, return_tensors="pt"))
