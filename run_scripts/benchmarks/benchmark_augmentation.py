# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""What an image costs a core between the file and the batch: decoding and cutting it, and varying it in either way.

    python -m run_scripts.benchmarks.benchmark_augmentation

All ways see the same images and seeds, in turn, on one thread; a line is the median of the repeats.
"""

import io
import statistics
import time
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from modeling_fdt import FDTImageProcessor
from run_scripts.arguments import read_config, run_command
from run_scripts.data.augmentation import Augmentation


@dataclass
class AugmentationBenchmarkArguments:
    config: str = field(
        default="run_scripts/configs/cc3m_vit_b32.json", metadata={"help": "JSON file that names the augmentation."}
    )
    image_size: int = field(default=256, metadata={"help": "Side of the JPEG files, in pixels."})
    num_images: int = field(default=64, metadata={"help": "Images of a batch."})
    num_repeats: int = field(default=10, metadata={"help": "Batches whose median is printed; one more comes before."})

    def __post_init__(self):
        for name in ("image_size", "num_images", "num_repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def make_files(number: int, size: int) -> list[bytes]:
    """JPEG files with coarse and fine structure, as photographs have it."""
    random, files = np.random.default_rng(0), []
    for _ in range(number):
        image = Image.new("RGB", (size, size), "gray")
        for coarse in (4, 16, 64, size):
            layer = Image.fromarray(random.integers(0, 256, (coarse, coarse, 3), dtype=np.uint8))
            image = Image.blend(image, layer.resize((size, size), Image.Resampling.BICUBIC), 4 / (coarse + 4))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def main(arguments: AugmentationBenchmarkArguments) -> None:
    torch.set_num_threads(1)
    run = read_config(arguments.config)
    augmentation = Augmentation(run["augmentation"], FDTImageProcessor(**run.get("image_processor_config", {})))
    files = make_files(arguments.num_images, arguments.image_size)

    def decode_and_cut(seed: int) -> torch.Tensor:
        return augmentation.cut([Image.open(io.BytesIO(file)).convert("RGB") for file in files], seed)

    pixels = decode_and_cut(0)
    ways = {
        "decode and cut": decode_and_cut,
        "vary by OpenCV, as workers do": lambda seed: augmentation.vary_images(pixels, seed),
        "vary by torch, as the device does": lambda seed: augmentation.vary_batch(pixels, seed),
    }
    seconds = {name: [] for name in ways}
    for seed in range(arguments.num_repeats + 1):
        for name, way in ways.items():
            started = time.process_time()
            way(seed)
            seconds[name].append(time.process_time() - started)
    print("| on one core | ms an image | images a second |\n|---|---:|---:|")
    costs = {name: statistics.median(times[1:]) / arguments.num_images for name, times in seconds.items()}
    costs["all that a worker does"] = costs["decode and cut"] + costs["vary by OpenCV, as workers do"]
    for name, cost in costs.items():
        print(f"| {name} | {1000 * cost:.2f} | {1 / cost:,.0f} |")


if __name__ == "__main__":
    run_command(main, AugmentationBenchmarkArguments)
