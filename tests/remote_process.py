"""What a stranger does with a saved folder, run by test_remote_code.py where this package cannot be imported.

python -I -S tests/remote_process.py SITE_PACKAGES REPORT FOLDER VISION_FOLDER PICTURE RESAVED
"""

import base64
import json
import sys
from pathlib import Path


sys.path.append(sys.argv[1])

import torch
import transformers
from PIL import Image
from transformers import pipeline
from transformers.dynamic_module_utils import get_class_from_dynamic_module


REPORT, FOLDER, VISION_FOLDER, PICTURE, RESAVED = sys.argv[2:]
LABELS = ["a cat", "two dogs", "Hello!"]
report = {}


def try_to(action, *args, **kwargs) -> str:
    """The error that an action ends with, or an empty string."""
    try:
        action(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def describe(value: object) -> str:
    return f"{type(value).__module__.split('.')[0]} {type(value).__name__}"


@torch.inference_mode()
def embed(model, processor) -> dict[str, list]:
    inputs = processor(images=Image.open(PICTURE), text=LABELS, return_tensors="pt")
    outputs = model(**inputs)
    names = ("image_embeds", "text_embeds", "logits_per_image")
    return {name: outputs[name].tolist() for name in names if outputs[name] is not None}


def scores(rows: list[dict]) -> dict[str, float]:
    return {row["label"]: row["score"] for row in rows}


report["imports"] = {name: try_to(__import__, name) for name in ("modeling_fdt", "ftfy", "run_scripts")}

names = ("AutoConfig", "AutoImageProcessor", "AutoModel", "AutoModelForImageClassification")
names += ("AutoModelForTextEncoding", "AutoModelForZeroShotImageClassification", "AutoProcessor", "AutoTokenizer")
report["refused"] = {name: try_to(getattr(transformers, name).from_pretrained, FOLDER) for name in names}
report["refused"]["pipeline"] = try_to(pipeline, "zero-shot-image-classification", model=FOLDER)

loaded = {name: getattr(transformers, name).from_pretrained(FOLDER, trust_remote_code=True) for name in names}
report["classes"] = {name: describe(value) for name, value in loaded.items()}
processor, model = loaded["AutoProcessor"], loaded["AutoModel"]
report["parts"] = [describe(processor.image_processor), describe(processor.tokenizer)]
report["outputs"] = embed(model, processor)
report["text_embeds"] = loaded["AutoModelForTextEncoding"](
    **loaded["AutoTokenizer"](LABELS, padding=True, return_tensors="pt")
).text_embeds.tolist()

vision_class = get_class_from_dynamic_module("modeling_fdt.FDTVisionModel", FOLDER)
pixels = loaded["AutoImageProcessor"](Image.open(PICTURE), return_tensors="pt")
report["vision_embeds"] = {
    "from the full folder": vision_class.from_pretrained(FOLDER)(**pixels).image_embeds.tolist(),
    "from its own": transformers.AutoModel.from_pretrained(VISION_FOLDER, trust_remote_code=True)(
        **pixels
    ).image_embeds.tolist(),
}

classify = pipeline("zero-shot-image-classification", model=FOLDER, trust_remote_code=True)
picture = Image.open(PICTURE)
encoded = base64.b64encode(Path(PICTURE).read_bytes()).decode()
inputs = {"path": PICTURE, "PIL": picture, "base64": encoded, "data URL": f"data:image/png;base64,{encoded}"}
report["zero_shot"] = {name: scores(classify(value, candidate_labels=LABELS)) for name, value in inputs.items()}
batched = classify([PICTURE, picture, picture], candidate_labels=LABELS, batch_size=2)
report["zero_shot_batched"] = [scores(rows) for rows in batched]
report["image_classification"] = scores(
    pipeline("image-classification", model=FOLDER, trust_remote_code=True)(picture)
)
extract = pipeline("image-feature-extraction", model=FOLDER, trust_remote_code=True, return_tensors=True)
report["features"] = extract(picture).tolist()

inputs = processor(images=picture, text=LABELS, return_tensors="pt")
explanation = model.explain(**inputs, top_k=None)
report["contributions"] = explanation.image_contributions.tolist()
report["words"] = processor.post_process_text_explanation(explanation, LABELS)[1]["words"]
report["tokenizer_without_vocabulary"] = try_to(type(loaded["AutoTokenizer"]))

model.save_pretrained(RESAVED)
processor.save_pretrained(RESAVED)
again = [
    getattr(transformers, name).from_pretrained(RESAVED, trust_remote_code=True)
    for name in ("AutoModelForZeroShotImageClassification", "AutoProcessor")
]
report["resaved_module"] = type(again[0]).__module__
report["resaved_outputs"] = embed(*again)

Path(REPORT).write_text(json.dumps(report))
