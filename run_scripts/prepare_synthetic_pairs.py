# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Write drawings of coloured shapes with captions as tar shards, laid out as img2dataset lays out what it downloads.

    python -m run_scripts.prepare_synthetic_pairs

`run_scripts/configs/smoke.json` reads them.
"""

import io
import json
import random
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageDraw

from run_scripts.arguments import run_command


COLORS = ("red", "green", "blue", "yellow", "orange", "purple", "gray", "black")
SHAPES = {
    "circle": ImageDraw.ImageDraw.ellipse,
    "square": ImageDraw.ImageDraw.rectangle,
    "triangle": lambda draw, box, fill: draw.polygon([box[0], box[3], box[2], box[3], box[2], box[1]], fill=fill),
}


@dataclass
class SyntheticPairsArguments:
    output_dir: str = field(default="data/synthetic_pairs", metadata={"help": "Where the shards are written."})
    num_pairs: int = field(default=1024, metadata={"help": "Number of pairs."})
    pairs_per_shard: int = field(default=128, metadata={"help": "Number of pairs in a shard."})
    broken_fraction: float = field(
        default=0.0, metadata={"help": "Share of the images whose file is truncated, to see that training skips them."}
    )
    image_size: int = field(default=48, metadata={"help": "Width and height in pixels."})
    seed: int = field(default=0, metadata={"help": "Of shapes, colours and places."})

    def __post_init__(self):
        for name in ("num_pairs", "pairs_per_shard", "image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.broken_fraction <= 1:
            raise ValueError(f"broken_fraction must be from 0 to 1, got {self.broken_fraction}")


def draw_pair(generator: random.Random, size: int) -> tuple[Image.Image, str]:
    """A shape of one colour on a ground of another, and what one would say of it."""
    color, ground = generator.sample(COLORS, 2)
    shape = generator.choice(sorted(SHAPES))
    width = generator.uniform(0.4, 0.8) * size
    left, top = (generator.uniform(0, size - width) for _ in range(2))
    image = Image.new("RGB", (size, size), ground)
    SHAPES[shape](ImageDraw.Draw(image), [left, top, left + width, top + width], fill=color)
    return image, f"a {color} {shape} on {ground}"


def prepare_synthetic_pairs(arguments: SyntheticPairsArguments) -> None:
    """Write the shards `00000.tar`, `00001.tar`, ..."""
    from webdataset import ShardWriter

    output_dir, generator = Path(arguments.output_dir), random.Random(arguments.seed)
    output_dir.mkdir(parents=True, exist_ok=True)
    num_broken = round(arguments.broken_fraction * arguments.num_pairs)
    broken = set(random.Random(arguments.seed).sample(range(arguments.num_pairs), num_broken))
    with ShardWriter(str(output_dir / "%05d.tar"), maxcount=arguments.pairs_per_shard, verbose=False) as shards:
        for number in range(arguments.num_pairs):
            image, caption = draw_pair(generator, arguments.image_size)
            file = io.BytesIO()
            image.save(file, "JPEG", quality=85)
            jpeg, key = file.getvalue(), f"{number:09}"
            if number in broken:
                jpeg = jpeg[: len(jpeg) // 2]
            metadata = json.dumps({"key": key, "caption": caption, "status": "success"}).encode()
            shards.write({"__key__": key, "jpg": jpeg, "json": metadata, "txt": caption.encode()})


if __name__ == "__main__":
    run_command(prepare_synthetic_pairs, SyntheticPairsArguments)
