# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Pretrain

Draw coloured shapes with captions, train a small FDT model on them from scratch, and ask it about drawings that it has
never seen. Two other tutorials use the model that this one leaves in `outputs/tutorials/pretrained`.

    python docs/tutorials/pretrain.py
"""

import json
import random
from itertools import permutations
from pathlib import Path

import torch

from modeling_fdt import FDTModel, FDTProcessor
from run_scripts.arguments import parse_arguments
from run_scripts.prepare_synthetic_pairs import (
    COLORS,
    SHAPES,
    SyntheticPairsArguments,
    draw_pair,
    prepare_synthetic_pairs,
)
from run_scripts.training.arguments import PRETRAINING
from run_scripts.training.pretraining import train


# ## The data
#
# Tar shards of images and captions, in the layout of img2dataset. The captions read "a red circle on blue".

folder = Path("outputs/tutorials")
prepare_synthetic_pairs(SyntheticPairsArguments(output_dir=str(folder / "pairs"), num_pairs=2048, image_size=32))

# ## The run
#
# One JSON file describes a run: model, data, and any field of `TrainingArguments`. The configs of the paper's runs, in
# `run_scripts/configs`, use the same names.

small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
run = {
    "model_config": {
        "vision_config": {**small, "image_size": 32, "patch_size": 8},
        "text_config": {**small, "max_position_embeddings": 16},
        "codebook_size": 128,
        "codebook_dim": 32,
        "grounding_temperature": 100.0,
    },
    "image_processor_config": {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
    "dataset": str(folder / "pairs" / "{00000..00015}.tar"),
    "output_dir": str(folder / "pretrained"),
    "max_steps": 120,
    "per_device_train_batch_size": 64,
    "learning_rate": 2e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 10,
    "logging_steps": 25,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "seed": 0,
}
run_file = folder / "pretrain.json"
run_file.write_text(json.dumps(run, indent=2))

# On the command line this is `python -m run_scripts.run_pretraining outputs/tutorials/pretrain.json`; flags after the
# file override it.

train(*parse_arguments(PRETRAINING, [str(run_file)]))

# ## What it has learnt
#
# Zero-shot classification of new drawings: of all possible captions, the one with the largest logit is the answer.

model, processor = FDTModel.from_pretrained(folder / "pretrained"), FDTProcessor.from_pretrained(folder / "pretrained")
names = [f"a {color} {shape} on {ground}" for color, ground in permutations(COLORS, 2) for shape in SHAPES]
generator = random.Random(1)
drawings, captions = zip(*(draw_pair(generator, 32) for _ in range(200)), strict=True)
inputs = processor(images=list(drawings), text=names, return_tensors="pt")
with torch.inference_mode():
    answers = model(**inputs, return_loss=False).logits_per_image.argmax(dim=-1)
num_right = sum(caption == names[answer] for caption, answer in zip(captions, answers, strict=True))
share, chance = num_right / len(captions), 1 / len(names)
print(f"{share:.0%} of new drawings named right among {len(names)} names (chance {chance:.0%})")
