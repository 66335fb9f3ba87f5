# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Write a model's two towers as ONNX files: images and captions to embeddings and code weights.

    python -m run_scripts.export_onnx --model outputs/emoji_two_styles --output_dir onnx

image.onnx takes `pixel_values` and gives `image_embeds` and `image_code_weights`; text.onnx takes `input_ids` and
`attention_mask` and gives `text_embeds` and `text_code_weights`. The number of images or captions is free, and so is
the captions' length up to the text tower's context. Both files are checked against the model by onnxruntime.
"""

from dataclasses import dataclass, field
from pathlib import Path

from run_scripts.arguments import run_command


@dataclass
class ExportArguments:
    model: str = field(metadata={"help": "Folder or Hub name of an FDT checkpoint with its processor."})
    output_dir: str = field(metadata={"help": "Folder for image.onnx and text.onnx."})


def main(arguments: ExportArguments) -> None:
    from run_scripts.export.towers import export_onnx

    export_onnx(arguments.model, Path(arguments.output_dir))


if __name__ == "__main__":
    run_command(main, ExportArguments)
