# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Look into a trained model: drop a picture, type labels, and see which codes decide.

    python -m run_scripts.run_app --model outputs/emoji_two_styles

Opens a page for this machine only (needs `pip install -e ".[app]"`).
"""

from dataclasses import dataclass, field

import gradio
import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import HfArgumentParser

from modeling_fdt import FDTModel, FDTProcessor
from run_scripts.evaluation.embedding import load_model
from run_scripts.visualization.figures import lay_over
from run_scripts.visualization.records import box_in_percent, encode_heat_maps


@dataclass
class AppArguments:
    model: str = field(metadata={"help": "Folder or Hub name of an FDT model with its processor."})
    port: int = field(default=7860, metadata={"help": "Port of the page, on this machine only."})


def split_labels(labels: str) -> list[str]:
    """Labels by line or comma, without empty and repeated ones.

    Raises:
        gradio.Error: there is none.
    """
    names = [label.strip() for line in labels.splitlines() for label in line.split(",")]
    names = list(dict.fromkeys(label for label in names if label))
    if not names:
        raise gradio.Error("Type at least one label.")
    return names


def explain(
    model: FDTModel, processor: FDTProcessor, image: Image.Image | None, labels: str, num_codes: int
) -> tuple[dict[str, float], list[tuple[np.ndarray, str]], list[list], list[list]]:
    """What the page shows.

    Args:
        model, processor: what explains.
        image: any picture.
        labels: names to choose from, by line or comma.
        num_codes: how many codes to show.

    Returns:
        The probability of each label; pictures with heat maps and their titles; for each label and shown code
        what the code adds to the label's logit; for each label the codes that it shares with the picture.

    Raises:
        gradio.Error: there is no picture or no label.
    """
    if image is None:
        raise gradio.Error("Drop a picture first.")
    names = split_labels(labels)
    image = ImageOps.exif_transpose(image).convert("RGB")
    inputs = processor(images=image, text=names, return_tensors="pt").to(model.device)
    explanation = model.explain(**inputs, top_k=num_codes)
    logits = explanation.logits_per_image[0]
    probabilities = dict(zip(names, logits.softmax(dim=-1).tolist(), strict=True))

    codes, weights = explanation.image_codes[0].tolist(), explanation.image_weights[0].tolist()
    num_active = sum(weight > 0 for weight in weights)
    heat_maps = []
    for code, weight, heat_map in zip(
        codes[:num_active], weights, encode_heat_maps(explanation.patch_scores[0]), strict=False
    ):
        overlay = lay_over(image, box_in_percent(processor, image), heat_map)
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
            "# What does the model see?\nDrop a picture and type labels. They are compared as weighted sums of codes: "
            "below is where the picture's strongest codes score high, and what each adds to a label."
        )
        with gradio.Row():
            with gradio.Column():
                image = gradio.Image(type="pil", label="Picture")
                labels = gradio.Textbox("a face, a dog, a heart", lines=3, label="Labels, by line or comma")
                num_codes = gradio.Slider(1, 16, value=6, step=1, label="Codes to show")
                button = gradio.Button("Explain", variant="primary")
            with gradio.Column():
                probabilities = gradio.Label(label="Probability of each label", num_top_classes=10)
                shared = gradio.Dataframe(
                    headers=["label", "logit", "of it by the same code in both", "shared codes"],
                    label="Codes shared with each label",
                    wrap=True,
                )
        heat_maps = gradio.Gallery(
            label="Strongest codes of the picture: dark where the score is lowest, clear where it is highest",
            columns=6,
            object_fit="contain",
        )
        additions = gradio.Dataframe(headers=["label", "code", "adds to the logit"], label="What each code adds")
        button.click(
            lambda *values: explain(model, processor, *values),
            inputs=[image, labels, num_codes],
            outputs=[probabilities, heat_maps, additions, shared],
            api_name="explain",
        )
    return app


def main(arguments: AppArguments) -> None:
    model, processor = load_model(arguments.model)
    if not hasattr(model, "codebook"):
        raise ValueError(f"model={arguments.model!r} is a {type(model).__name__}, which has no codes")
    build_app(model, processor).launch(server_name="127.0.0.1", server_port=arguments.port)


if __name__ == "__main__":
    main(*HfArgumentParser(AppArguments, allow_abbrev=False).parse_args_into_dataclasses())
