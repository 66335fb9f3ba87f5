"""A day at the Hub, run by test_hub.py with HF_ENDPOINT and HF_TOKEN set for its server: push, train and push, fail,
be refused, and load what was pushed.

    python tests/hub_process.py WORK_FOLDER REPORT
"""

import json
import os
import sys
import time
import urllib.request
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from huggingface_hub import ModelCard

from modeling_fdt import FDTForImageClassification, FDTImageProcessor, FDTModel, FDTProcessor, FDTTokenizer
from run_scripts.hub import files
from run_scripts.hub.files import push_folder
from run_scripts.push_to_hub import PushArguments
from run_scripts.push_to_hub import main as push_to_hub
from run_scripts.training.finetuning import add_lora
from run_scripts.training.reproducible import ReproducibleTrainer
from run_scripts.training.trainer import FDTTrainer, FDTTrainingArguments
from tests.conftest import build_tiny_config
from tests.examples import run_page, write_stand_ins


time.sleep = lambda seconds: None  # huggingface_hub waits between its attempts
os.chdir(sys.argv[1])
report = {}


def try_to(action, *args, **kwargs) -> str:
    """The error that an action ends with, and the status that the server answered with; or an empty string."""
    try:
        action(*args, **kwargs)
    except Exception as error:
        cause = error
        while cause is not None and not hasattr(cause, "response"):
            cause = cause.__cause__ or cause.__context__
        status = "" if cause is None else f" {cause.response.status_code}"
        return f"{type(error).__name__}{status}: {error}"
    return ""


def let_fail(pattern: str, count: int, status: int) -> None:
    data = json.dumps({pattern: (count, status)}).encode()
    urllib.request.urlopen(urllib.request.Request(f"{os.environ['HF_ENDPOINT']}/failures", data=data)).close()


def states_are_equal(name: str, model: FDTModel, **kwargs) -> bool:
    state = FDTModel.from_pretrained(name, **kwargs).state_dict()
    return all(torch.equal(state[key], value) for key, value in model.state_dict().items())


torch.manual_seed(0)
model = FDTModel(build_tiny_config()).eval()
image_processor = FDTImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
processor = FDTProcessor(image_processor=image_processor, tokenizer=FDTTokenizer())

# model.push_to_hub, processor.push_to_hub
model.push_to_hub("owner/tiny")
processor.push_to_hub("owner/tiny")
report["pushed_is_equal"] = states_are_equal("owner/tiny", model)
report["pushed_processor"] = type(FDTProcessor.from_pretrained("owner/tiny")).__name__

# Trainer(push_to_hub=True), in folders that hold more than a model
NAMES = {0: "cat", 1: "dog"}
pixel_values = torch.randn(16, 3, 32, 32)
pairs = [{"pixel_values": p, "input_ids": torch.tensor([49407, 100 + n, 49408])} for n, p in enumerate(pixel_values)]
labelled = [{"pixel_values": p, "labels": n % 2} for n, p in enumerate(pixel_values)]


def plant(folder: str) -> None:
    """Files that lie beside a model and are nobody's business."""
    names = (".env", "optimizer.pt", "rng_state.pth", "extra.pkl", "private.py", "contact_sheet.png", "notes.json")
    for name in (*names, "gallery/index.html", "gallery/config.json", "old_checkpoint/model.safetensors"):
        Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
        Path(folder, name).write_bytes(b"stays behind")


def train(name: str, trainer_class: type, model, dataset: list, hub_strategy: str = "end"):
    """A trainer that has trained for two steps, and pushed after each where `hub_strategy` says so."""
    arguments = FDTTrainingArguments(
        output_dir=name,
        push_to_hub=True,
        hub_model_id=f"owner/{name}",
        hub_strategy=hub_strategy,
        hub_always_push=True,
        per_device_train_batch_size=8,
        max_steps=2,
        logging_steps=1,
        save_strategy="no" if hub_strategy == "end" else "steps",
        save_steps=1,
        report_to="none",
        use_cpu=True,
        seed=7,
    )
    trainer = trainer_class(model=model, args=arguments, train_dataset=dataset, processing_class=processor)
    plant(name)
    trainer.train()
    return trainer


trainer = train("trained", FDTTrainer, model, pairs)
trainer.push_to_hub(license="cc-by-4.0", dataset_tags=["owner/pairs"])
report["trained_is_equal"] = states_are_equal("owner/trained", trainer.model.eval())
report["trained_card"] = ModelCard.load("owner/trained").content
train("every_save", FDTTrainer, model, pairs, hub_strategy="every_save")
report["whole_checkpoints"] = try_to(train, "whole", FDTTrainer, model, pairs, hub_strategy="all_checkpoints")

base = FDTForImageClassification.from_pretrained("owner/tiny", id2label=NAMES)
train("classifier", ReproducibleTrainer, base, labelled).push_to_hub()
adapters = add_lora(FDTModel.from_pretrained("owner/tiny"), 2, ["q_proj", "v_proj"])
train("adapters", FDTTrainer, adapters, pairs).push_to_hub()
adapters = add_lora(FDTForImageClassification.from_pretrained("owner/tiny", id2label=NAMES), 2, ["q_proj", "v_proj"])
train("classifier_adapters", ReproducibleTrainer, adapters, labelled).push_to_hub()

# A folder with a card and results
model.save_pretrained("folder")
processor.save_pretrained("folder")
metric = {"value": 0.25, "chance": 0.1, "unit": "share"}
evaluation = {"task": "zero_shot", "metrics": {"top1": metric}, "data": [{"source": "data/cats", "split": "test"}]}
Path("evaluation.json").write_text(json.dumps(evaluation))
plant("folder")
Path("folder", "ATTRIBUTION.md").write_text("Drawings by their owners.")
Path("folder", "code_names.json").write_text(json.dumps({str(code): f"name of {code}" for code in range(64)}))
logged = []
files.logger.info = lambda message, *values: logged.append(message % values)
extras = {"endpoint": True, "space": "owner/page", "results": ["evaluation.json"]}
push_to_hub(PushArguments("folder", "owner/folder", license="mit", **extras))
report["left_behind"] = list(logged)
report["folder_card"] = ModelCard.load("owner/folder").content
report["second_license"] = try_to(push_to_hub, PushArguments("folder", "owner/folder", license="apache-2.0"))

# Uploads that fail: for good, by a dropped connection, for a moment only, and when tried again
failures = {
    "no commit": ("POST /api/models/owner/failing/commit", 1, 507),
    "dropped": ("POST /api/models/owner/failing/preupload", 99, 0),
    "no weights": ("PUT /lfs", 99, 500),
    "no weights for a moment": ("PUT /lfs", 2, 503),
}
before = {path.name: path.read_bytes() for path in Path("folder").iterdir() if path.is_file()}
report["failed"] = {}
for name, failure in failures.items():
    let_fail(*failure)
    report["failed"][name] = try_to(push_folder, "folder", "owner/failing")
    let_fail(failure[0], 0, 0)
let_fail("POST /api/models/owner/failing2/commit", 1, 507)
report["failed"]["model.push_to_hub"] = try_to(model.push_to_hub, "owner/failing2")
model.push_to_hub("owner/failing2")
report["folder_is_untouched"] = before == {p.name: p.read_bytes() for p in Path("folder").iterdir() if p.is_file()}
report["retried_is_equal"] = [states_are_equal(name, model) for name in ("owner/failing", "owner/failing2")]

# A private repository, to its owner, to nobody and to somebody else
push_to_hub(PushArguments("folder", "owner/private", private=True))
report["private_is_equal"] = states_are_equal("owner/private", model, token="hf_owner")
report["private_to"] = {
    "nobody": try_to(FDTModel.from_pretrained, "owner/private", token=False, cache_dir="nobodys"),
    "a stranger": try_to(FDTModel.from_pretrained, "owner/private", token="hf_stranger", cache_dir="a strangers"),
    "a stranger who writes": try_to(model.push_to_hub, "owner/tiny", token="hf_stranger"),
}

# The examples of the documentation
os.environ["HF_TOKEN"] = "hf_me"
write_stand_ins(Path())
run_page(Path(__file__).parents[1] / "docs" / "hub.md")

Path(sys.argv[2]).write_text(json.dumps(report))
