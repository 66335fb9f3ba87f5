# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""What cached features save: a training step of the groundings on features against one that runs frozen towers, too.

    python -m run_scripts.benchmarks.benchmark_features
    python -m run_scripts.benchmarks.benchmark_features --device cuda --batch_size 256

Random images and captions of the full context on ViT-B/32 with CLIP's text tower; towers are frozen in both. The two
take turns, and the median of each counts. Neither reads data: what a step saves beside the towers, decoding images and
tokenising captions, is not counted, nor what it costs to read features.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Literal

import torch

from modeling_fdt import FDTConfig, FDTModel
from run_scripts.arguments import run_command
from run_scripts.benchmarks.benchmark_grounding import make_training_step, measure_seconds
from run_scripts.training.freezing import freeze_parts, keep_frozen_in_evaluation


@dataclass
class FeatureBenchmarkArguments:
    device: Literal["cpu", "cuda"] = field(default="cpu", metadata={"help": "Where to measure."})
    batch_size: int = field(default=256, metadata={"help": "Pairs in a step."})
    codebook_size: int = field(default=16384, metadata={"help": "Number of codes."})
    num_repeats: int = field(default=5, metadata={"help": "Turns that each contestant takes."})


def main(arguments: FeatureBenchmarkArguments) -> None:
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', but torch sees no CUDA device")
    torch.manual_seed(0)
    config = FDTConfig.vit_b_32(codebook_size=arguments.codebook_size)
    model = FDTModel(config).to(arguments.device).train()
    freeze_parts(model, ["vision_tower", "text_tower"])
    keep_frozen_in_evaluation(model)
    input_ids = torch.randint(1, 49000, (arguments.batch_size, 77), device=arguments.device)
    inputs = {
        "pixel_values": torch.randn(arguments.batch_size, 3, 224, 224, device=arguments.device),
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
    }
    with torch.no_grad():
        features = {
            "patch_features": model.get_patch_features(inputs["pixel_values"]).half(),
            "token_features": model.get_token_features(input_ids, inputs["attention_mask"]).half(),
            "attention_mask": inputs["attention_mask"],
        }
    dtype = None if arguments.device == "cpu" else "bfloat16"
    steps = {
        "towers": make_training_step(model, inputs, dtype),
        "features": make_training_step(model, features, dtype),
    }
    seconds = measure_seconds(steps, arguments.num_repeats, arguments.device)
    result = {
        **asdict(arguments),
        "seconds": seconds,
        "time_ratio": seconds["features"] / seconds["towers"],
        "pairs_per_second": {name: arguments.batch_size / value for name, value in seconds.items()},
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    run_command(main, FeatureBenchmarkArguments)
