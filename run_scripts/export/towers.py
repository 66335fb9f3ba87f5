# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""A model's two towers by `torch.export`, and as ONNX files that are checked against it."""

import logging
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn
from torch.export import Dim
from transformers import PreTrainedModel

from modeling_fdt import FDTModel, FDTProcessor
from modeling_fdt.towers_fdt import get_context_length


logger = logging.getLogger(__name__)

# Of float32, on embeddings of length 1 and weights of at most 1.
TOLERANCE = 1e-4


class TowerForExport(nn.Module):
    """One half of a model as a function of tensors: embeddings and code weights.

    Args:
        model: the whole model.
        modality: "image" or "text".
    """

    def __init__(self, model: PreTrainedModel, modality: str):
        super().__init__()
        self.model, self.modality = model, modality
        self.output_names = [f"{modality}_embeds", f"{modality}_code_weights"]

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = getattr(self.model, f"get_{self.modality}_features")(*inputs)
        return tuple(output[name] for name in self.output_names)


def export_tower(model: FDTModel, modality: str, inputs: dict[str, torch.Tensor]) -> torch.export.ExportedProgram:
    """One half of a model by `torch.export`, for any number of images or captions, and captions of any length.

    Args:
        model: in evaluation mode, in float32.
        modality: "image" or "text".
        inputs: an example of what the half takes, of at least two images or captions.
    """
    dimensions = {0: Dim("batch_size")}
    if modality == "text":
        dimensions[1] = Dim("length", max=get_context_length(model.config.text_config))
    tower = TowerForExport(model, modality).eval()
    return torch.export.export(tower, tuple(inputs.values()), dynamic_shapes=((dimensions,) * len(inputs),))


def save_onnx(
    program: torch.export.ExportedProgram, modality: str, inputs: dict[str, torch.Tensor], path: Path
) -> None:
    """Write an exported half as ONNX, and compare the file's outputs with the half's.

    Raises:
        ValueError: they differ by more than `TOLERANCE`.
    """
    output_names = [f"{modality}_embeds", f"{modality}_code_weights"]
    onnx_program = torch.onnx.export(program, input_names=list(inputs), output_names=output_names, verbose=False)
    onnx_program.save(path)
    session = onnxruntime.InferenceSession(path)
    values = session.run(output_names, {name: value.numpy() for name, value in inputs.items()})
    expected = program.module()(*inputs.values())
    for name, value, tensor in zip(output_names, values, expected, strict=True):
        difference = np.abs(value - tensor.detach().numpy()).max()
        if not difference <= TOLERANCE:
            raise ValueError(f"{path}: `{name}` differs from the model's by {difference:g}, more than {TOLERANCE:g}")


def export_onnx(model_name: str, output_dir: Path) -> None:
    """Write image.onnx and text.onnx.

    Args:
        model_name: folder or Hub name of an FDT checkpoint with its processor.
        output_dir: folder for both.

    Raises:
        ValueError: a file's outputs differ from the model's.
    """
    model = FDTModel.from_pretrained(model_name, dtype=torch.float32).eval()
    processor = FDTProcessor.from_pretrained(model_name)
    output_dir.mkdir(parents=True, exist_ok=True)
    size = (64, 96, 3)
    images = np.random.default_rng(0).integers(0, 256, (3, *size), dtype=np.uint8)
    examples = {
        "image": dict(processor(images=list(images), return_tensors="pt")),
        "text": dict(processor(text=["a red heart", "two dogs in the snow", "Hello!"], return_tensors="pt")),
    }
    for modality, inputs in examples.items():
        path = output_dir / f"{modality}.onnx"
        save_onnx(export_tower(model, modality, inputs), modality, inputs, path)
        logger.info("wrote %s", path)
