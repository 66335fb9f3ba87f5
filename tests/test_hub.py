"""Pushing to a Hub on this machine and loading from it, from the requests to the loaded model."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pyarrow.parquet
import pytest
import torch
import yaml
from gradio_client import Client, handle_file
from PIL import Image

from modeling_fdt import (
    FDTConfig,
    FDTForImageClassification,
    FDTModel,
    FDTProcessor,
    FDTTextModel,
    FDTVisionModel,
    model_card,
)
from run_scripts.hub import card as hub_card
from run_scripts.hub.code_names import write_code_names
from run_scripts.hub.files import list_uploads
from run_scripts.hub.space import write_space
from run_scripts.push_to_hub import PushArguments, main
from tests.hub_server import Hub
from tests.test_remote_code import CODE, run_without_the_package


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
    arguments = ["owner/tiny", "owner/tiny", tmp_path / "picture.png", tmp_path / "resaved"]
    remote = run_without_the_package("remote_process.py", arguments, tmp_path, environment)
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
    assert report["trained_is_equal"]
    assert {"processor_config.json", "modeling_fdt.py"} <= set(files_of(server, "owner/trained"))


MODELS = ("trained", "every_save", "classifier", "adapters", "classifier_adapters", "folder")


@pytest.mark.parametrize("name", MODELS)
def test_only_what_belongs_to_a_model_is_pushed(report, server, name):
    commits = server.repositories[f"owner/{name}"].commits
    uploaded = set().union(*commits)
    weights = {"adapter_config.json", "adapter_model.safetensors"} if "adapters" in name else {"model.safetensors"}
    card = {"README.md"} if name != "every_save" else set()
    own = {"config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json", "BPE_LICENSE"}
    sparse_encoder = {"modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"}
    endpoint = {"requirements.txt", "code_names.json"}
    own |= {"ATTRIBUTION.md", *endpoint, *sparse_encoder} if name == "folder" else set()
    code = {file for file in uploaded if file.endswith(".py")}
    assert uploaded == own | weights | code | card
    code -= {"sparse_encoder_fdt.py", "handler.py"} if name == "folder" else set()
    assert code == CODE or ("adapters" in name and {"configuration_fdt.py", "processing_fdt.py"} <= code < CODE)
    assert len(commits) == (3 if name == "every_save" else 2)  # the first is empty


def test_what_stays_behind_is_listed(report):
    (line,) = (line for line in report["left_behind"] if "left behind" in line)
    planted = (".env", "contact_sheet.png", "extra.pkl", "gallery/", "notes.json", "old_checkpoint/", "optimizer.pt")
    assert line == f"left behind in folder: {', '.join(planted)}, private.py, rng_state.pth, space/"


def test_whole_checkpoints_are_refused(report):
    assert report["whole_checkpoints"].startswith("ValueError: hub_strategy must be one of ['end', 'every_save']")


def test_examples_of_cards_run_where_the_package_is_not(report, environment, tmp_path):
    names = [f"owner/{name}" for name in MODELS if name != "every_save"]
    answers = run_without_the_package("card_process.py", names, tmp_path, environment, packages=("peft",))
    assert answers == {name: ["cat", "dog"] if "classifier" in name else [1, 2] for name in names}


def test_what_else_a_pushed_model_serves_where_the_package_is_not(report, environment, tmp_path):
    Image.new("RGB", (40, 50), "red").save(tmp_path / "image.png")
    arguments = ["owner/folder", tmp_path / "image.png"]
    packages = ("sentence-transformers",)
    answers = run_without_the_package("pushed_process.py", arguments, tmp_path, environment, packages)
    model, processor = FDTModel.from_pretrained(tmp_path / "saved"), FDTProcessor.from_pretrained(tmp_path / "saved")
    inputs = processor(images=Image.open(tmp_path / "image.png"), text="a cat", return_tensors="pt")
    outputs = model(**inputs)
    # Another process may sum in another order: float32 on values of at most 1.
    close = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(torch.tensor(answers["image_embeds"]), outputs.image_embeds[0], **close)
    torch.testing.assert_close(torch.tensor(answers["image_code_weights"]), outputs.image_code_weights[0], **close)
    codes = outputs.text_code_weights[0].argsort(descending=True)[: len(answers["text_codes"])].tolist()
    assert [name for name, _ in answers["text_codes"]] == [f"name of {code}" for code in codes]
    weights, codes = outputs.image_code_weights[0].topk(len(answers["endpoint"]["image_codes"][0]))
    found = {code["name"]: code["weight"] for code in answers["endpoint"]["image_codes"][0]}
    expected = {f"name of {code}": weight for code, weight in zip(codes.tolist(), weights.tolist(), strict=True)}
    assert found == pytest.approx(expected, abs=1e-5) and len(answers["explained"]["codes"]) == 2
    assert len(answers["refused"]) == 2 and all("trust_remote_code=True" in error for error in answers["refused"])
    assert (tmp_path / "saved" / "sparse_encoder_fdt.py").exists()


def write_repository(server: Hub, name: str, folder: Path) -> Path:
    for path, content in files_of(server, name).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


@pytest.fixture
def space(report, server, environment, tmp_path):
    """The address of the pushed Space, started as the Hub does; only its own folder and site-packages are there."""
    folder = write_repository(server, "spaces/owner/page", tmp_path / "space")
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    settings = {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(tmp_path / "gradio")}
    settings["GRADIO_SERVER_PORT"] = url.rpartition(":")[2]
    with open(tmp_path / "log", "w") as log:
        # The folder of app.py comes first among those where Python looks for modules.
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=folder, env={**environment, **settings}, stdout=log, stderr=log
        )
    try:
        for _ in range(3000):
            assert process.poll() is None, (tmp_path / "log").read_text()
            try:
                httpx.get(url)
                break
            except httpx.ConnectError:
                time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()


def test_the_space_shows_the_pushed_model(space, server, tmp_path, images):
    files = files_of(server, "spaces/owner/page")
    metadata = metadata_of(files["README.md"].decode())
    assert (metadata["sdk"], metadata["app_file"], metadata["models"]) == ("gradio", "app.py", ["owner/folder"])
    requirements = files["requirements.txt"].decode().splitlines()
    assert "matplotlib" in requirements and "gradio" not in requirements
    images[0].save(tmp_path / "image.png")
    client = Client(space, verbose=False, download_files=str(tmp_path / "answers"))
    answer = client.predict(handle_file(tmp_path / "image.png"), "a cat, a dog", 2, api_name="/explain")[0]
    folder = write_repository(server, "owner/folder", tmp_path / "model")
    model, processor = FDTModel.from_pretrained(folder), FDTProcessor.from_pretrained(folder)
    inputs = processor(images=images[0], text=["a cat", "a dog"], return_tensors="pt")
    expected = dict(zip(["a cat", "a dog"], model(**inputs).logits_per_image[0].softmax(dim=-1).tolist(), strict=True))
    assert {row["label"]: row["confidence"] for row in answer["confidences"]} == pytest.approx(expected, abs=1e-5)


def test_a_space_needs_a_model_with_codes_and_its_name_on_the_hub(tmp_path, tiny_model, tiny_config):
    tiny_model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="owner//name"):
        write_space(tmp_path / "model", "owner//name", tmp_path / "space")
    FDTVisionModel(tiny_config).save_pretrained(tmp_path / "half")
    with pytest.raises(ValueError, match="a Space needs an FDTModel"):
        write_space(tmp_path / "half", "owner/name", tmp_path / "space")
    assert not (tmp_path / "space").exists()


@pytest.mark.parametrize("name", ["classifier", "adapters", "classifier_adapters"])
def test_cards_of_classifiers_and_adapters(report, server, name):
    card = files_of(server, f"owner/{name}")["README.md"].decode()
    metadata = metadata_of(card)
    task = "image-classification" if "classifier" in name else "zero-shot-image-classification"
    assert (metadata["pipeline_tag"], metadata["base_model"]) == (task, "owner/tiny")
    assert "| steps | 2 |" in card and "## Limits" in card and "More Information" not in card
    if "adapters" in name:
        assert (metadata["library_name"], metadata["base_model_relation"]) == ("peft", "adapter")
        assert metadata["tags"] == ["fdt", "custom_code", "lora"] and "adapters of rank 2" in card


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
    assert report["second_license"].startswith("ValueError: ['license'] are for new cards")


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("no commit", "HfHubHTTPError 507"),
        ("dropped", "RemoteProtocolError"),
        ("no weights", "RuntimeError 500"),
        ("model.push_to_hub", "HfHubHTTPError 507"),
    ],
)
def test_a_failed_upload_is_an_error(report, failure, message):
    assert report["failed"][failure].startswith(message)


def test_a_failed_upload_loses_nothing_and_can_be_tried_again(report, server):
    assert report["failed"]["no weights for a moment"] == ""
    assert report["folder_is_untouched"] and report["retried_is_equal"] == [True, True]
    assert len(server.repositories["owner/failing"].commits) == 2  # the empty one, and one from all attempts


def test_a_private_repository(report, server):
    assert server.repositories["owner/private"].private and report["private_is_equal"]
    errors = {user: error.split(":")[0] for user, error in report["private_to"].items()}
    assert errors == {
        "nobody": "OSError 401",
        "a stranger": "OSError 404",
        "a stranger who writes": "HfHubHTTPError 403",
    }


def test_examples_of_the_documentation(report, server):
    assert {"config.json", "model.safetensors", "processor_config.json"} <= set(files_of(server, "me/fdt"))


def test_results_of_the_demo_take_the_place_of_older_ones(tmp_path, tiny_model):
    tiny_model.save_pretrained(tmp_path)
    model_card.write_model_card(tmp_path, base_model="owner/clip", tags=["emoji", "fdt"])
    for value in (0.5, 0.123456):
        record = {"config": "emoji.json", "results": {"test": {"top-1": {"value": value, "chance": None}}}}
        (tmp_path / "results.json").write_text(json.dumps(record))
        hub_card.add_results(tmp_path, [tmp_path / "results.json"])
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


def write_adapters(folder: Path, base_model: str) -> None:
    FDTConfig().save_pretrained(folder)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base_model, "r": 2}))


@pytest.mark.parametrize(
    ("half_class", "task", "shape"),
    [(FDTVisionModel, "image-feature-extraction", (1, 32)), (FDTTextModel, "feature-extraction", (2, 32))],
)
def test_example_in_the_card_of_a_half(
    half_class, task, shape, tmp_path, tiny_config, tiny_processor, images, monkeypatch
):
    half_class(tiny_config).save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    model_card.write_model_card(tmp_path, repo_id=str(tmp_path))
    card = (tmp_path / "README.md").read_text()
    assert metadata_of(card)["pipeline_tag"] == task
    images[0].save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    variables: dict = {}
    exec(card.split("```python\n")[1].split("```")[0], variables)
    assert type(variables["model"]) is half_class and variables["embeds"].shape == shape
    assert variables["codes"].shape[1] == 2


def test_adapters_must_name_a_base_model_that_others_can_load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda self, *args, **kwargs: None)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", lambda self, *args, **kwargs: None)
    (tmp_path / "outputs" / "base").mkdir(parents=True)
    for base_model in ("outputs/base", str(tmp_path / "gone")):
        write_adapters(tmp_path / "adapters", base_model)
        # As peft leaves it: no card that somebody wrote.
        (tmp_path / "adapters" / "README.md").write_text("# Model Card for Model ID\n[More Information Needed]")
        with pytest.raises(ValueError, match=f"base_model must be given.*{base_model}"):
            main(PushArguments("adapters", "owner/adapters"))
    main(PushArguments("adapters", "owner/adapters", base_model="owner/base"))
    config = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())
    card = (tmp_path / "adapters" / "README.md").read_text()
    assert config == {"base_model_name_or_path": "owner/base", "r": 2}
    assert metadata_of(card)["base_model"] == "owner/base" and 'from_pretrained("owner/base"' in card


def test_codes_are_called_by_names_beyond_chance_alone(tmp_path, tiny_config):
    tiny_config.save_pretrained(tmp_path)
    names = {0: "dog", 1: "cat", 2: "grass", 3: "", 4: "sky"}
    p_values = {0: (0.001, 0.4), 1: (0.2, 0.05), 2: (0.06, None), 3: (0.001, 0.001), 4: (None, None)}
    rows = [
        {
            "code": code,
            "name": names.get(code, "by chance"),
            "image_coherence_p_value": p_values.get(code, (0.5, 0.5))[0],
            "text_coherence_p_value": p_values.get(code, (0.5, 0.5))[1],
        }
        for code in range(64)
    ]
    table = tmp_path / "codes.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    write_code_names(tmp_path, table)
    assert json.loads((tmp_path / "code_names.json").read_text()) == {"0": "dog", "1": "cat"}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[:32]), table)
    with pytest.raises(ValueError, match="tells of 32 codes, the model in .* has 64"):
        write_code_names(tmp_path, table)
    no_parquet, no_gallery = tmp_path / "notes.txt", tmp_path / "other.parquet"
    no_parquet.write_text("no parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"code": 0}]), no_gallery)
    for other in (no_parquet, no_gallery):
        with pytest.raises(ValueError, match="is no codes.parquet of run_visualization"):
            write_code_names(tmp_path, other)


def test_code_goes_along_if_a_configuration_names_it_or_such_code_imports_it(tmp_path):
    auto_map = {
        "AutoModel": "first.Model",
        "AutoTokenizer": ["second.Tokenizer", None],
        "AutoConfig": "me/other--third.C",
    }
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": auto_map}))
    (tmp_path / "first.py").write_text("from .helper import help\n")
    for name in ("helper.py", "second.py", "third.py", "fourth.py"):
        (tmp_path / name).write_text("")
    uploaded, left_behind = list_uploads(tmp_path)
    assert uploaded == ["config.json", "first.py", "helper.py", "second.py"]
    assert left_behind == ["fourth.py", "third.py"]
    with pytest.raises(ValueError, match="without config.json"):
        list_uploads(tmp_path / "first.py")


def test_wrong_input_is_refused(tmp_path):
    with pytest.raises(ValueError, match="without config.json"):
        main(PushArguments(str(tmp_path), "owner/name"))
    with pytest.raises(ValueError, match=r"without README.md"):
        hub_card.add_results(tmp_path, [])
    FDTConfig().save_pretrained(tmp_path)
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match=r"other.json holds no results"):
        main(PushArguments(str(tmp_path), "owner/name", results=[str(tmp_path / "other.json")]))
    (tmp_path / "README.md").write_text("# A card of one's own")
    (tmp_path / "results.json").write_text(json.dumps({"config": "a.json", "results": {}}))
    with pytest.raises(ValueError, match="one section `## Evaluation`, got 0"):
        hub_card.add_results(tmp_path, [tmp_path / "results.json"])
