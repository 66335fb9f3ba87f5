# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""The page that shows which codes of a model decide about an image and labels."""

from pathlib import Path

import gradio
import numpy as np
import torch

from modeling_fdt import FDTModel, FDTProcessor
from run_scripts.data.decoding import ImageError, decode_image, to_rgb
from run_scripts.evaluation.embedding import load_model
from run_scripts.visualization.arguments import AppArguments
from run_scripts.visualization.figures import lay_over
from run_scripts.visualization.records import box_in_percent, encode_heat_maps


MAX_CODES = 16
SHOWN_SIZE = 1024  # longest side of heat maps, in pixels


class Refusal(gradio.Error):
    """What the page says of input that it does not take; nothing is wrong with the app, so it prints no traceback."""

    def __init__(self, message: str):
        super().__init__(message, print_exception=False)


def check_num_codes(num_codes: float) -> int:
    """The number of codes to show; callers of `/explain` may send what the slider cannot.

    Raises:
        Refusal: it is no whole number from 1 to `MAX_CODES`.
    """
    if num_codes not in range(1, MAX_CODES + 1) or isinstance(num_codes, bool):
        raise Refusal(f"Codes to show must be a whole number from 1 to {MAX_CODES}, got {num_codes!r}.")
    return int(num_codes)


def split_labels(labels: str) -> list[str]:
    """Labels by line or comma, without empty and repeated ones.

    Raises:
        Refusal: there is none.
    """
    names = [label.strip() for line in labels.splitlines() for label in line.split(",")]
    names = list(dict.fromkeys(label for label in names if label))
    if not names:
        raise Refusal("Type at least one label.")
    return names


def explain(
    model: FDTModel, processor: FDTProcessor, path: str | None, labels: str, num_codes: float
) -> tuple[dict[str, float], list[tuple[np.ndarray, str]], list[list], list[list]]:
    """What the page shows.

    Args:
        model, processor: what explains.
        path: of an image.
        labels: names to choose from, by line or comma.
        num_codes: how many codes to show, a whole number from 1 to `MAX_CODES`.

    Returns:
        The probability of each label; images with heat maps and their titles; for each label and shown code
        what the code adds to the label's logit; for each label the codes that it shares with the image.

    Raises:
        Refusal: there is no label, no image or one that cannot be used, or no such number of codes.
    """
    if path is None:
        raise Refusal("Drop an image first.")
    names = split_labels(labels)
    num_codes = check_num_codes(num_codes)
    try:
        image = decode_image(path)
    except ImageError as error:
        raise Refusal(str(error).replace(path, Path(path).name)) from error
    inputs = processor(images=image, text=names, return_tensors="pt").to(model.device)
    explanation = model.explain(**inputs, top_k=num_codes)
    logits = explanation.logits_per_image[0]
    probabilities = dict(zip(names, logits.softmax(dim=-1).tolist(), strict=True))

    codes, weights = explanation.image_codes[0].tolist(), explanation.image_weights[0].tolist()
    num_active = sum(weight > 0 for weight in weights)
    heat_maps, shown = [], to_rgb(image)
    shown.thumbnail((SHOWN_SIZE, SHOWN_SIZE))
    for code, weight, heat_map in zip(
        codes[:num_active], weights, encode_heat_maps(explanation.patch_scores[0]), strict=False
    ):
        overlay = lay_over(shown, box_in_percent(processor, image), heat_map)
        heat_maps.append(((overlay * 255).astype(np.uint8), f"code {code}, weight {weight:.3g}"))

    additions, shared = [], []
    for place in torch.argsort(logits, descending=True).tolist():
        for code, addition in zip(
            codes[:num_active], explanation.image_contributions[0, place].tolist(), strict=False
        ):
            additions.append([names[place], code, round(addition, 4)])
        same = explanation.same_code_logits[0, place].item()
        pairs = zip(
            explanation.shared_codes[0, place].tolist(),
            explanation.shared_contributions[0, place].tolist(),
            strict=True,
        )
        listed = ", ".join(f"{code} (+{addition:.3g})" for code, addition in pairs if addition > 0)
        shared.append([names[place], round(logits[place].item(), 3), round(same, 3), listed or "none"])
    return probabilities, heat_maps, additions, shared


def build_app(model: FDTModel, processor: FDTProcessor) -> gradio.Blocks:
    """The page; its one function can also be called by name, as `/explain`."""
    with gradio.Blocks(title="Finite discrete tokens", analytics_enabled=False) as app:
        gradio.Markdown(
            "# What does the model see?\nDrop an image and type labels. They are compared as weighted sums of codes: "
            "below is where the image's strongest codes score high, and what each adds to a label."
        )
        with gradio.Row():
            with gradio.Column():
                image = gradio.Image(type="filepath", image_mode=None, label="Image")
                # The file as it was dropped: gradio's own method opens it before ours can say what is wrong with it.
                image.preprocess = lambda payload: None if payload is None else payload.path
                labels = gradio.Textbox("a face, a dog, a heart", lines=3, label="Labels, by line or comma")
                num_codes = gradio.Slider(1, MAX_CODES, value=6, step=1, label="Codes to show")
                button = gradio.Button("Explain", variant="primary")
            with gradio.Column():
                probabilities = gradio.Label(label="Probability of each label", num_top_classes=10)
        # By itself gradio lays the captions over the images, and leaves half of the box empty.
        gradio.HTML(
            "<style>.heat-maps .grid-wrap { min-height: 0; height: auto; } "
            ".heat-maps .thumbnail-item { aspect-ratio: auto; height: auto; } "
            ".heat-maps .caption-label { position: static; display: block; max-width: none; }</style>",
            padding=False,
        )
        gradio.Markdown("### Strongest codes of the image\nDark where the score is lowest, clear where it is highest.")
        heat_maps = gradio.Gallery(
            label="Strongest codes of the image",
            show_label=False,
            columns=6,
            height="auto",
            object_fit="contain",
            elem_classes="heat-maps",
        )
        shared = gradio.Dataframe(
            headers=["label", "logit", "of it by the same code in both", "shared codes"],
            label="Codes shared with each label",
            wrap=True,
        )
        additions = gradio.Dataframe(headers=["label", "code", "adds to the logit"], label="What each code adds")
        button.click(
            lambda *values: explain(model, processor, *values),
            inputs=[image, labels, num_codes],
            outputs=[probabilities, heat_maps, additions, shared],
            api_name="explain",
        )
    return app


def run_app(arguments: AppArguments) -> None:
    """Load the model and serve the page until the process is stopped.

    Raises:
        ValueError: the model cannot be loaded, or has no codes.
    """
    model, processor = load_model(arguments.model, arguments.device)
    if not hasattr(model, "codebook"):
        raise ValueError(f"model={arguments.model!r} is a {type(model).__name__}, which has no codes")
    build_app(model, processor).launch(server_name="127.0.0.1", server_port=arguments.port)
