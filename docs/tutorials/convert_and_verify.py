# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Convert and verify

Turn a checkpoint of the original implementation into a transformers folder that computes the same, and back. The
checkpoint here is synthetic: a tiny untrained model, written in the original's format. A real one is converted in the
same way.

    python docs/tutorials/convert_and_verify.py
"""

import logging
import shutil
from pathlib import Path

import torch

from conversion.convert_fdt_to_hf import ConversionArguments, convert_fdt_to_hf
from conversion.convert_hf_to_fdt import BackConversionArguments, convert_hf_to_fdt
from conversion.original_checkpoint import read_original_checkpoint
from modeling_fdt import FDTConfig, FDTModel, FDTProcessor


# ## A checkpoint in the original's format
#
# What an earlier run left is removed first: conversion does not write into a folder that holds something.

folder = Path("outputs/tutorials/conversion")
shutil.rmtree(folder, ignore_errors=True)
logging.basicConfig(level=logging.INFO, format="%(message)s")
torch.manual_seed(0)
small = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
config = FDTConfig(
    vision_config={**small, "image_size": 64, "patch_size": 16},
    text_config=small,
    codebook_size=128,
    codebook_dim=32,
)
FDTModel(config).save_pretrained(folder / "made_up")
convert_hf_to_fdt(BackConversionArguments(model=str(folder / "made_up"), output_dir=str(folder / "original")))
original = read_original_checkpoint(folder / "original" / "ckpt.pth.tar")
print(f"the original's checkpoint has {len(original.tensors)} tensors")

# ## To transformers
#
# On the command line: `python -m conversion.convert_fdt_to_hf --checkpoint ckpt.pth.tar --config config.json
# --output_dir fdt`. Nothing in the file is executed. Its checksums must match, and every tensor must have its place
# and hold finite numbers, or the command stops. `verify`, the default, reloads the written folder and compares it in
# float64 with an independent forward pass over the checkpoint's own tensors; if they differ, no folder is left.

convert_fdt_to_hf(
    ConversionArguments(
        checkpoint=str(folder / "original" / "ckpt.pth.tar"),
        config=str(folder / "original" / "config.json"),
        output_dir=str(folder / "fdt"),
        verify=True,
    )
)

# Model and processor are ready for use, with the original's vocabulary and image statistics.

model, processor = FDTModel.from_pretrained(folder / "fdt"), FDTProcessor.from_pretrained(folder / "fdt")
outputs = model(**processor(text=["a cat", "two dogs"], return_tensors="pt"))
print("caption embeddings:", tuple(outputs.text_embeds.shape))

# ## And back
#
# The round trip is exact: the same tensors, bit for bit.

convert_hf_to_fdt(BackConversionArguments(model=str(folder / "fdt"), output_dir=str(folder / "back")))
back = read_original_checkpoint(folder / "back" / "ckpt.pth.tar")
is_equal = original.tensors.keys() == back.tensors.keys() and all(
    torch.equal(tensor, back.tensors[name]) for name, tensor in original.tensors.items()
)
print("the round trip is exact:", is_equal)
