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
from PIL import Image

from modeling_fdt import FDTImageProcessor, FDTModel, FDTProcessor, FDTTokenizer
from run_scripts.push_to_hub import PushArguments, push_folder
from run_scripts.push_to_hub import main as push_to_hub
from run_scripts.training.trainer import FDTTrainer, FDTTrainingArguments
from tests.conftest import build_tiny_config


time.sleep = lambda seconds: None  # huggingface_hub waits between its attempts
os.chdir(sys.argv[1])
report = {}


def try_to(action, *args, **kwargs) -> str:
    """The error that an action ends with, or an empty string."""
    try:
        action(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
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

# Trainer(push_to_hub=True)
pairs = [
    {"pixel_values": torch.randn(3, 32, 32), "input_ids": torch.tensor([49407, 100 + number, 49408])}
    for number in range(16)
]
arguments = FDTTrainingArguments(
    output_dir="trained",
    push_to_hub=True,
    hub_model_id="owner/trained",
    per_device_train_batch_size=8,
    max_steps=2,
    logging_steps=1,
    save_strategy="no",
    report_to="none",
    use_cpu=True,
    seed=7,
)
trainer = FDTTrainer(model=model, args=arguments, train_dataset=pairs, processing_class=processor)
trainer.train()
trainer.push_to_hub(license="cc-by-4.0", dataset_tags=["owner/pairs"])
report["trained_is_equal"] = states_are_equal("owner/trained", trainer.model.eval())
card = ModelCard.load("owner/trained")
report["trained_card"] = card.content
Image.new("RGB", (40, 50), "red").save("picture.png")
names = {}
exec(card.text.split("```python\n")[1].split("```")[0], names)
report["card_example"] = names["probabilities"].shape

# A folder with a card and results
model.save_pretrained("folder")
processor.save_pretrained("folder")
metric = {"value": 0.25, "chance": 0.1, "unit": "share"}
evaluation = {"task": "zero_shot", "metrics": {"top1": metric}, "data": [{"source": "data/cats", "split": "test"}]}
Path("evaluation.json").write_text(json.dumps(evaluation))
for name in ("training_args.bin", "checkpoint-2/model.safetensors"):
    Path("folder", name).parent.mkdir(exist_ok=True)
    Path("folder", name).write_bytes(b"stays behind")
push_to_hub(PushArguments("folder", "owner/folder", licence="mit", results=["evaluation.json"]))
report["folder_card"] = ModelCard.load("owner/folder").content
report["second_licence"] = try_to(push_to_hub, PushArguments("folder", "owner/folder", licence="apache-2.0"))

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

Path(sys.argv[2]).write_text(json.dumps(report))
