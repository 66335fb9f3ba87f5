# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""An FDT model behind Hugging Face Inference Endpoints: zero-shot classification, embeddings, codes, explanations.

This file is copied into a model's folder; it needs torch, transformers and Pillow and imports nothing of this
repository. The endpoint makes an `EndpointHandler` of the folder and calls it with every request's JSON; what it
raises, the endpoint answers with status 400 and the message as `error`.

Source: huggingface-inference-toolkit, `webservice_starlette.predict` and
`utils.check_and_register_custom_pipeline_from_directory`.
"""

import base64
import binascii
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor


MAX_ITEMS = 64  # images, and captions, in a request
DEFAULT_TEMPLATE = "This is a photo of {}."  # that of transformers' pipeline
DEFAULT_TOP_K = 6


class EndpointHandler:
    """
    Answers requests `{"inputs": ..., "parameters": {"task": ..., ...}}`.

    Images are base64 text; URLs and paths are refused, for the endpoint would fetch what it alone can reach. `inputs`
    is one image, or `{"images": [...], "texts": [...]}`. Tasks, by default zero-shot:

    - `zero-shot`: one image; parameters `candidate_labels` (a list, or text with commas) and `hypothesis_template`.
      Gives `[{"label", "score"}, ...]` by falling score, as huggingface_hub's InferenceClient expects it.
    - `embeddings`: gives `{"image_embeds": [...], "text_embeds": [...]}`, of L2 norm 1.
    - `codes`: gives `{"image_codes": [[{"code", "weight"}, ...], ...], "text_codes": ...}`, the active codes by
      falling weight; parameter `top_k` bounds their number.
    - `explanation`: one image, and texts if wanted; parameter `top_k`. Gives `codes` of the image, each with its
      `patch_scores`, a grid of rows; and `texts`, each with its `logit`, the share `same_code_logit` of it that comes
      from the same code in both, what the shown codes of the image add (`added_by_codes`), and `shared_codes`.

    Codes have a `name` where the folder's `code_names.json` gives one.

    Args:
        path: the model's folder.
    """

    def __init__(self, path: str = ""):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = AutoModel.from_pretrained(path, trust_remote_code=True).eval().to(device)
        self.processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
        names = Path(path, "code_names.json")
        self.code_names = json.loads(names.read_text(encoding="utf-8")) if names.exists() else {}
        self.tasks: dict[str, Callable[[list[Image.Image], list[str], dict[str, Any]], Any]] = {
            "zero-shot": self.classify,
            "embeddings": self.embed,
            "codes": self.find_codes,
            "explanation": self.explain,
        }

    @torch.inference_mode()
    def __call__(self, data: dict[str, Any]) -> Any:
        """
        Answer a request.

        Raises:
            ValueError: the request is not as described above; the message says in what.
        """
        parameters = {} if data.get("parameters") is None else data["parameters"]
        if not isinstance(parameters, dict):
            raise ValueError(f"parameters must be an object, got {parameters!r:.100}")
        task = parameters.get("task", "zero-shot")
        if not isinstance(task, str) or task not in self.tasks:
            raise ValueError(f"task must be one of {list(self.tasks)}, got {task!r:.100}")
        known = {
            "zero-shot": {"candidate_labels", "hypothesis_template"},
            "codes": {"top_k"},
            "explanation": {"top_k"},
        }.get(task, set())
        if unknown := sorted(set(parameters) - known - {"task"}):
            raise ValueError(f"parameters of task {task!r} are {sorted(known)}, got {unknown}")
        return self.tasks[task](*read_inputs(data.get("inputs")), parameters)

    def classify(self, images: list[Image.Image], texts: list[str], parameters: dict[str, Any]) -> list[dict]:
        labels = parameters.get("candidate_labels")
        if isinstance(labels, str):
            labels = [label.strip() for label in labels.split(",") if label.strip()]
        labels = check_texts("candidate_labels", labels)
        template = parameters.get("hypothesis_template", DEFAULT_TEMPLATE)
        if not isinstance(template, str) or "{}" not in template:
            raise ValueError(
                f"hypothesis_template must be text with {{}} in place of the label, got {template!r:.100}"
            )
        if len(images) != 1 or texts or not labels:
            raise ValueError(
                "zero-shot needs one image as inputs and at least one label in parameters.candidate_labels, got "
                f"{len(images)} images, {len(texts)} texts and {len(labels)} labels"
            )
        outputs = self.model(**self.encode(images, [template.replace("{}", label) for label in labels]))
        scores = outputs.logits_per_image[0].softmax(dim=-1).tolist()
        answers = [{"label": label, "score": score} for label, score in zip(labels, scores, strict=True)]
        return sorted(answers, key=lambda answer: -answer["score"])

    def embed(self, images: list[Image.Image], texts: list[str], parameters: dict[str, Any]) -> dict[str, list]:
        outputs = self.model(**self.encode(images, texts))
        names = ("image_embeds", "text_embeds")
        return {name: outputs[name].tolist() for name in names if outputs.get(name) is not None}

    def find_codes(self, images: list[Image.Image], texts: list[str], parameters: dict[str, Any]) -> dict[str, list]:
        top_k = self.read_top_k(parameters, default=None)
        outputs = self.model(**self.encode(images, texts))
        answer = {}
        for modality in ("image", "text"):
            rows = outputs.get(f"{modality}_code_weights")
            if rows is not None:
                answer[f"{modality}_codes"] = [self.list_codes(row, top_k) for row in rows]
        return answer

    def explain(self, images: list[Image.Image], texts: list[str], parameters: dict[str, Any]) -> dict[str, list]:
        if len(images) != 1:
            raise ValueError(f"explanation needs one image, got {len(images)}")
        top_k = self.read_top_k(parameters, default=min(DEFAULT_TOP_K, self.model.config.codebook_size))
        explanation = self.model.explain(**self.encode(images, texts), top_k=top_k)
        codes = self.describe(explanation.image_codes[0], explanation.image_weights[0], "weight")
        for code, patch_scores in zip(codes, explanation.patch_scores[0].tolist(), strict=False):
            code["patch_scores"] = patch_scores
        if not texts:
            return {"codes": codes}
        explained = [
            {
                "text": text,
                "logit": explanation.logits_per_image[0, place].item(),
                "same_code_logit": explanation.same_code_logits[0, place].item(),
                "added_by_codes": explanation.image_contributions[0, place, : len(codes)].tolist(),
                "shared_codes": self.describe(
                    explanation.shared_codes[0, place], explanation.shared_contributions[0, place], "adds"
                ),
            }
            for place, text in enumerate(texts)
        ]
        return {"codes": codes, "texts": explained}

    def encode(self, images: list[Image.Image], texts: list[str]) -> Any:
        """What the model takes."""
        return self.processor(images=images or None, text=texts or None, return_tensors="pt").to(self.model.device)

    def read_top_k(self, parameters: dict[str, Any], default: int | None) -> int | None:
        """The number of codes asked for."""
        top_k, most = parameters.get("top_k", default), self.model.config.codebook_size
        is_number = isinstance(top_k, int) and not isinstance(top_k, bool) and 1 <= top_k <= most
        if "top_k" in parameters and not is_number:
            raise ValueError(f"top_k must be a whole number from 1 to {most}, got {top_k!r:.100}")
        return top_k

    def list_codes(self, code_weights: torch.Tensor, top_k: int | None) -> list[dict[str, Any]]:
        """The active codes of one image or text by falling weight, at most `top_k`."""
        num_active = int((code_weights > 0).sum())
        weights, codes = code_weights.topk(min(num_active, top_k or num_active))
        return self.describe(codes, weights, "weight")

    def describe(self, codes: torch.Tensor, values: torch.Tensor, value_name: str) -> list[dict[str, Any]]:
        """Codes as JSON, those with a value above 0, which come first."""
        described = []
        for code, value in zip(codes.tolist(), values.tolist(), strict=True):
            if value > 0:
                name = self.code_names.get(str(code))
                described.append({"code": code, **({} if name is None else {"name": name}), value_name: value})
        return described


def read_inputs(inputs: Any) -> tuple[list[Image.Image], list[str]]:
    """
    The images and captions of a request.

    Raises:
        ValueError: there are none or too many, or they are of another form.
    """
    if isinstance(inputs, str | Image.Image):
        inputs = {"images": [inputs]}
    if not isinstance(inputs, dict) or not inputs or set(inputs) - {"images", "texts"}:
        got = sorted(map(str, inputs)) if isinstance(inputs, dict) else type(inputs).__name__
        raise ValueError(f'inputs must be an image as base64, or {{"images": [...], "texts": [...]}}, got {got}')
    images = inputs.get("images", [])
    if not isinstance(images, list) or len(images) > MAX_ITEMS:
        got = f"{len(images)} of them" if isinstance(images, list) else type(images).__name__
        raise ValueError(f"images must be a list of at most {MAX_ITEMS}, got {got}")
    texts = check_texts("texts", inputs.get("texts", []))
    if not images and not texts:
        raise ValueError("inputs must hold an image or a text, got none")
    return [decode_base64_image(image, place) for place, image in enumerate(images)], texts


def check_texts(name: str, texts: Any) -> list[str]:
    """
    Texts as they are; None is none.

    Raises:
        ValueError: they are no list of texts, or too many.
    """
    texts = [] if texts is None else texts
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name} must be a list of texts, got {texts!r:.100}")
    if len(texts) > MAX_ITEMS:
        raise ValueError(f"{name} must be at most {MAX_ITEMS}, got {len(texts)}")
    return texts


def decode_base64_image(image: Any, place: int) -> Image.Image:
    """
    An image from base64, with or without `data:image/...;base64,` before it; the endpoint itself may have decoded it.

    Raises:
        ValueError: it is something else, or no image that Pillow can read whole.
    """
    if isinstance(image, Image.Image):
        return image
    if not isinstance(image, str):
        raise ValueError(f"image {place} must be base64 text, got {type(image).__name__}")
    encoded = image.partition("base64,")[2] if image.startswith("data:") else image
    try:
        decoded = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"image {place} must be base64 text, not a URL or a path, got {image!r:.100}") from error
    try:
        opened = Image.open(BytesIO(decoded))
        opened.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"image {place} cannot be decoded: {error}") from error
    return opened
