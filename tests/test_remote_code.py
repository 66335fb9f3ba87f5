"""A saved folder in a process that has torch, transformers and Pillow but not this package."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForTextEncoding, AutoProcessor

import modeling_fdt
from modeling_fdt import FDTImageProcessor, FDTModel, FDTProcessor, FDTTextModel, FDTTokenizer, FDTVisionModel
from tests.conftest import build_tiny_config, needs_auto_image_processor


pytestmark = needs_auto_image_processor

LABELS = ["a cat", "two dogs", "Hello!"]
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
PACKAGE = Path(modeling_fdt.__file__).parent
CODE = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py", "kmeans.py", "model_card.py"}


def link_packages(names: list[str], folder: Path) -> None:
    """Link distributions and all that they depend on into a folder: site-packages with nothing else."""
    pending, seen = list(names), set()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(distribution.locate_file(top))
        requirements = [Requirement(text) for text in distribution.requires or []]
        pending += [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A folder with a saved model, one half of it saved alone, and a picture."""
    root = tmp_path_factory.mktemp("remote")
    torch.manual_seed(0)
    model = FDTModel(build_tiny_config()).eval()
    model.save_pretrained(root / "model")
    image_processor = FDTImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    FDTProcessor(image_processor=image_processor, tokenizer=FDTTokenizer()).save_pretrained(root / "model")
    FDTVisionModel.from_pretrained(root / "model").save_pretrained(root / "vision")
    PICTURE.save(root / "picture.png")
    return root


def run_without_the_package(
    script: str, arguments: list, root: Path, environment: dict[str, str], packages: tuple[str, ...] = ()
) -> dict:
    """Run a script of this folder where there are torch, transformers, Pillow and `packages`; the report it writes.

    It is called with its folder of packages, the path of its report, and `arguments`.
    """
    site_packages = root / "site-packages"
    site_packages.mkdir()
    link_packages(["pillow", "torch", "transformers", *packages], site_packages)
    process = subprocess.run(
        [sys.executable, "-I", "-S", Path(__file__).with_name(script), site_packages, root / "report", *arguments],
        cwd=root,
        env={"PATH": os.environ["PATH"], **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert process.returncode == 0, process.stderr
    return json.loads((root / "report").read_text())


@pytest.fixture(scope="module")
def report(root: Path) -> dict:
    environment = {"HF_HOME": str(root / "cache"), "HF_HUB_OFFLINE": "1"}
    arguments = [root / name for name in ("model", "vision", "picture.png", "resaved")]
    return run_without_the_package("remote_process.py", arguments, root, environment)


@pytest.fixture(scope="module")
def expected(root: Path) -> dict[str, torch.Tensor]:
    """The outputs of the package's own classes."""
    model, processor = FDTModel.from_pretrained(root / "model"), FDTProcessor.from_pretrained(root / "model")
    with torch.inference_mode():
        inputs = processor(images=PICTURE, text=LABELS, return_tensors="pt")
        prompts = [f"This is a photo of {label}." for label in LABELS]
        prompted = model(**processor(images=PICTURE, text=prompts, return_tensors="pt"))
        outputs = model(**inputs)
    names = ("image_embeds", "text_embeds", "logits_per_image")
    return {name: outputs[name] for name in names} | {"probabilities": prompted.logits_per_image[0].softmax(dim=-1)}


def test_nothing_but_torch_and_transformers_is_there(report):
    assert all(error.startswith("ModuleNotFoundError") for error in report["imports"].values())


def test_refused_without_trust(report):
    assert len(report["refused"]) == 9
    for name, error in report["refused"].items():
        assert error.startswith("ValueError") and "trust_remote_code=True" in error, (name, error)


def test_auto_classes(report):
    assert report["classes"] == {
        "AutoConfig": "transformers_modules FDTConfig",
        "AutoImageProcessor": "transformers_modules FDTImageProcessor",
        "AutoModel": "transformers_modules FDTModel",
        "AutoModelForImageClassification": "transformers_modules FDTForImageClassification",
        "AutoModelForTextEncoding": "transformers_modules FDTTextModel",
        "AutoModelForZeroShotImageClassification": "transformers_modules FDTModel",
        "AutoProcessor": "transformers_modules FDTProcessor",
        "AutoTokenizer": "transformers_modules FDTTokenizer",
    }
    assert report["parts"] == ["transformers_modules FDTImageProcessor", "transformers_modules FDTTokenizer"]


def test_outputs_equal_the_packages(report, expected):
    for name, values in report["outputs"].items():
        assert_same(values, expected[name])
    assert_same(report["text_embeds"], expected["text_embeds"])


def test_the_image_half_alone(report, expected):
    for values in report["vision_embeds"].values():
        assert_same(values, expected["image_embeds"])


@pytest.mark.parametrize("form", ["path", "PIL", "base64", "data URL"])
def test_zero_shot_pipeline(report, expected, form):
    assert_same([report["zero_shot"][form][label] for label in LABELS], expected["probabilities"])


def test_zero_shot_pipeline_in_batches(report, expected):
    assert len(report["zero_shot_batched"]) == 3
    for rows in report["zero_shot_batched"]:
        assert_same([rows[label] for label in LABELS], expected["probabilities"])


def test_image_classification_pipeline(report):
    assert sum(report["image_classification"].values()) == pytest.approx(1)
    assert set(report["image_classification"]) == {"LABEL_0", "LABEL_1"}


def test_feature_extraction_pipeline(report, expected):
    assert_same(report["features"], expected["image_embeds"])


def test_saving_again_brings_everything_along(report, root, expected):
    saved, resaved = (sorted(path.name for path in (root / name).iterdir()) for name in ("model", "resaved"))
    assert resaved == saved and CODE <= set(saved)
    for name in (*CODE, "BPE_LICENSE", "config.json", "model.safetensors", "processor_config.json", "tokenizer.json"):
        assert (root / "resaved" / name).read_bytes() == (root / "model" / name).read_bytes(), name
    assert "resaved" in report["resaved_module"]
    for name, values in report["resaved_outputs"].items():
        assert_same(values, expected[name])


def test_the_code_is_the_packages(root):
    for name in (*CODE, "BPE_LICENSE"):
        assert (root / "model" / name).read_bytes() == (PACKAGE / name).read_bytes()


def test_explanations(report, expected):
    # The contributions of all active codes sum to the logits: float32 on values of at most 15.
    torch.testing.assert_close(
        torch.tensor(report["contributions"]).sum(dim=-1), expected["logits_per_image"], rtol=1e-5, atol=1e-5
    )
    assert report["words"] == ["<|startoftext|>", "two", "dogs", "<|endoftext|>"]


def test_a_tokenizer_of_a_folder_comes_with_its_vocabulary(report):
    assert "`vocab` must be given" in report["tokenizer_without_vocabulary"]


@pytest.mark.parametrize("trust_remote_code", [None, True])
def test_with_the_package_its_classes_win(root, trust_remote_code):
    expected = {
        AutoConfig: modeling_fdt.FDTConfig,
        AutoImageProcessor: FDTImageProcessor,
        AutoModel: FDTModel,
        AutoModelForTextEncoding: FDTTextModel,
        AutoProcessor: FDTProcessor,
    }
    for auto_class, own_class in expected.items():
        loaded = auto_class.from_pretrained(root / "model", trust_remote_code=trust_remote_code)
        assert type(loaded) is own_class


def assert_same(values: list, expected: torch.Tensor) -> None:
    # Another process may sum in another order: float32 on values of at most 15.
    torch.testing.assert_close(torch.tensor(values), expected, rtol=1e-5, atol=1e-6)
