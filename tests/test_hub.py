"""Pushing to a Hub on this machine and loading from it, from the requests to the loaded model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from modeling_fdt import FDTConfig, FDTForImageClassification, FDTModel, FDTProcessor, model_card
from run_scripts import push_to_hub
from run_scripts.push_to_hub import PushArguments, main
from tests.hub_server import Hub
from tests.test_remote_code import run_without_the_package


@pytest.fixture(scope="module")
def server():
    server = Hub()
    yield server
    server.close()


@pytest.fixture(scope="module")
def environment(server, tmp_path_factory) -> dict[str, str]:
    """What huggingface_hub reads when it is imported."""
    return {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(tmp_path_factory.mktemp("cache")),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "hf_owner",
        "PATH": os.environ["PATH"],
    }


@pytest.fixture(scope="module")
def report(environment, tmp_path_factory) -> dict:
    """What happened in hub_process.py."""
    work = tmp_path_factory.mktemp("work")
    script = Path(__file__).with_name("hub_process.py")
    command = [sys.executable, script, work, work / "report.json"]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert process.returncode == 0, process.stderr
    return json.loads((work / "report.json").read_text())


def files_of(server: Hub, name: str) -> dict[str, bytes]:
    return server.repositories[name].commits[-1]


def metadata_of(card: str) -> dict:
    return yaml.safe_load(card.split("---")[1])


def test_model_and_processor(report, server):
    assert report["pushed_is_equal"] and report["pushed_processor"] == "FDTProcessor"
    own = {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "modeling_fdt.py"}
    assert own | {"BPE_LICENSE", "explanation_fdt.py", "README.md"} <= set(files_of(server, "owner/tiny"))


def test_what_was_pushed_runs_where_the_package_is_not(report, server, environment, tmp_path):
    Image.new("RGB", (40, 50), "red").save(tmp_path / "picture.png")
    remote = run_without_the_package("owner/tiny", "owner/tiny", tmp_path, environment)
    model, processor = (cls.from_pretrained(tmp_path / "resaved") for cls in (FDTModel, FDTProcessor))
    labels = ["a cat", "two dogs", "Hello!"]
    inputs = processor(images=Image.open(tmp_path / "picture.png"), text=labels, return_tensors="pt")
    expected = model(**inputs).logits_per_image
    # Another process may sum in another order: float32 on values of at most 15.
    torch.testing.assert_close(torch.tensor(remote["outputs"]["logits_per_image"]), expected, rtol=1e-5, atol=1e-6)
    assert set(remote["classes"].values()) >= {"transformers_modules FDTModel", "transformers_modules FDTProcessor"}
    assert all("trust_remote_code=True" in error for error in remote["refused"].values())
    assert remote["resaved_outputs"] == remote["outputs"]


def test_trainer(report, server):
    assert report["trained_is_equal"] and report["card_example"] == [1, 2]
    assert {"processor_config.json", "modeling_fdt.py"} <= set(files_of(server, "owner/trained"))


def test_card_of_the_trainer(report):
    card = report["trained_card"]
    metadata = metadata_of(card)
    assert metadata["tags"] == ["fdt", "custom_code"] and metadata["datasets"] == ["owner/pairs"]
    assert (metadata["license"], metadata["library_name"]) == ("cc-by-4.0", "transformers")
    assert metadata["pipeline_tag"] == "zero-shot-image-classification"
    for text in ("| steps | 2 |", "| examples in a step | 8 |", "| seed | 7 |", "| last training loss |"):
        assert text in card
    for text in ("# trained", "trust_remote_code=True", '"owner/trained"', "## Limits", "@inproceedings", "64 finite"):
        assert text in card
    assert "Not evaluated yet." in card and "{{" not in card and "{%" not in card


def test_card_with_results(report, server):
    card = report["folder_card"]
    (result,) = metadata_of(card)["model-index"][0]["results"]
    assert result["task"]["type"] == "zero-shot" and result["dataset"]["name"] == "cats"
    (metric,) = result["metrics"]
    assert (metric["value"], metric["args"]) == (0.25, {"chance": 0.1})
    assert "| cats (test) | top1 | 0.25 | 0.1 |" in card and "Not evaluated" not in card
    assert report["second_licence"].startswith("ValueError: ['licence'] are for new cards")


def test_checkpoints_and_pickles_stay_behind(report, server):
    files = files_of(server, "owner/folder")
    assert "model.safetensors" in files and b"stays behind" not in files.values()


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("no commit", "507"),
        ("dropped", "disconnected"),
        ("no weights", "Error while uploading 'model.safetensors'"),
        ("model.push_to_hub", "507"),
    ],
)
def test_a_failed_upload_is_an_error(report, failure, message):
    assert message in report["failed"][failure]


def test_a_failed_upload_loses_nothing_and_can_be_tried_again(report, server):
    assert report["failed"]["no weights for a moment"] == ""
    assert report["folder_is_untouched"] and report["retried_is_equal"] == [True, True]
    assert len(server.repositories["owner/failing"].commits) == 2  # the empty one, and one from all attempts


def test_a_private_repository(report, server):
    assert server.repositories["owner/private"].private and report["private_is_equal"]
    assert "If this is a private repository, make sure to pass a token" in report["private_to"]["nobody"]
    assert "If this is a private repository, make sure to pass a token" in report["private_to"]["a stranger"]
    assert "403" in report["private_to"]["a stranger who writes"]


def test_results_of_the_demo_take_the_place_of_older_ones(tmp_path, tiny_model):
    tiny_model.save_pretrained(tmp_path)
    model_card.write_model_card(tmp_path, base_model="owner/clip", tags=["emoji", "fdt"])
    for value in (0.5, 0.123456):
        record = {"config": "emoji.json", "results": {"test": {"top-1": {"value": value, "chance": None}}}}
        (tmp_path / "results.json").write_text(json.dumps(record))
        push_to_hub.add_results(tmp_path, [tmp_path / "results.json"])
    card = (tmp_path / "README.md").read_text()
    metadata = metadata_of(card)
    assert metadata["base_model"] == "owner/clip" and metadata["tags"] == ["fdt", "custom_code", "emoji"]
    assert [len(metadata["model-index"][0]["results"]), card.count("## Evaluation")] == [1, 1]
    assert "| emoji (test) | top-1 | 0.1235 |  |" in card and "## Limits" in card and "0.5 |" not in card


def test_card_of_a_classifier(tmp_path, tiny_config):
    FDTForImageClassification(tiny_config).save_pretrained(tmp_path)
    model_card.write_model_card(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert metadata_of(card)["pipeline_tag"] == "image-classification"
    assert 'pipeline("image-classification"' in card and "candidate_labels" not in card


def test_wrong_input_is_refused(tmp_path):
    with pytest.raises(ValueError, match="without config.json"):
        main(PushArguments(str(tmp_path), "owner/name"))
    with pytest.raises(ValueError, match=r"without README.md"):
        push_to_hub.add_results(tmp_path, [])
    FDTConfig().save_pretrained(tmp_path)
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match=r"other.json holds no results"):
        main(PushArguments(str(tmp_path), "owner/name", results=[str(tmp_path / "other.json")]))
    (tmp_path / "README.md").write_text("# A card of one's own")
    (tmp_path / "results.json").write_text(json.dumps({"config": "a.json", "results": {}}))
    with pytest.raises(ValueError, match="one section `## Evaluation`, got 0"):
        push_to_hub.add_results(tmp_path, [tmp_path / "results.json"])
