# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""How fast `embed_images` is beside a plain loop on the same cores.

    python -m run_scripts.benchmarks.benchmark_embedding --scenes data/scenes

Both read the same tar shards of scenes. The loop is one process: it decodes and embeds batch by batch, with a thread
for each core, and keeps the result in memory. `embed_images` runs a worker on each core and writes Parquet. They take
turns, and the median of each counts. What a command needs before the first image (Ray, a model for every worker) is
measured with one image for each worker, and told apart.
"""

import io
import json
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image

from run_scripts.arguments import run_command
from run_scripts.data.decoding import decode_image
from run_scripts.data.scenes import SceneDataset
from run_scripts.evaluation.embedding import embed_images, iterate_batches, load_model
from run_scripts.search.arguments import EmbedArguments
from run_scripts.search.embedding_files import embed_files, list_image_files, read_source


@dataclass(kw_only=True)
class EmbeddingBenchmarkArguments:
    scenes: str = field(metadata={"help": "What `prepare_scenes` has written."})
    model: str = field(default="checkpoints/fdt-scenes", metadata={"help": "What embeds."})
    num_images: int = field(default=8192, metadata={"help": "Scenes to embed."})
    num_shards: int = field(default=8, metadata={"help": "Tar shards that they are in; each goes to one worker."})
    image_size: int = field(default=256, metadata={"help": "Side of the JPEG images in pixels."})
    batch_size: int = field(default=64, metadata={"help": "Images that are embedded together."})
    num_repeats: int = field(default=2, metadata={"help": "Turns of each contestant."})


def write_scene_shards(folder: Path, scenes: SceneDataset, num_images: int, num_shards: int, image_size: int) -> None:
    """Scenes as JPEG files in tar shards."""
    folder.mkdir()
    for number in range(num_shards):
        with tarfile.open(folder / f"{number:05}.tar", "w") as archive:
            for index in range(number, num_images, num_shards):
                image = scenes[index]["image"].resize((image_size, image_size), Image.Resampling.BICUBIC)
                content = io.BytesIO()
                image.save(content, "JPEG")
                member = tarfile.TarInfo(f"{index}.jpg")
                member.size = content.tell()
                content.seek(0)
                archive.addfile(member, content)


def embed_in_a_loop(model_name: str, images: Path, batch_size: int) -> int:
    """The number of images embedded, one batch after the other."""
    model, processor = load_model(model_name, "cpu")
    features = []
    for shard in list_image_files(str(images)):
        for batch in iterate_batches(read_source(shard, "image"), batch_size):
            decoded = [decode_image(found.value) for found in batch]
            features.append(embed_images(model, processor, decoded, batch_size))
    return sum(len(part.embeds) for part in features)


def measure_turns(contestants: dict[str, Callable[[], int]], num_images: int, num_repeats: int) -> dict[str, float]:
    """Median seconds of each; they take turns."""
    seconds = {name: [] for name in contestants}
    for _ in range(num_repeats):
        for name, embed in contestants.items():
            start = time.perf_counter()
            if embed() != num_images:
                raise RuntimeError(f"{name} has not embedded {num_images} images")
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def compare_speed(arguments: EmbeddingBenchmarkArguments, num_cores: int) -> dict[str, dict[str, float]]:
    """Seconds of each contestant, for one image for each core (`start`) and for all (`whole`)."""
    scenes, results = SceneDataset(arguments.scenes), {}
    with tempfile.TemporaryDirectory() as folder:
        for name, num_images, num_shards in (
            ("start", num_cores, num_cores),
            ("whole", arguments.num_images, arguments.num_shards),
        ):
            images = Path(folder) / name
            write_scene_shards(images, scenes, num_images, num_shards, arguments.image_size)

            def embed_by_ray(images: Path = images) -> int:
                with tempfile.TemporaryDirectory() as output_dir:
                    return embed_files(
                        EmbedArguments(
                            model=arguments.model,
                            images=str(images),
                            output_dir=output_dir,
                            device="cpu",
                            batch_size=arguments.batch_size,
                        )
                    ).num_images

            def embed_plainly(images: Path = images) -> int:
                return embed_in_a_loop(arguments.model, images, arguments.batch_size)

            contestants = {"plain loop": embed_plainly, "embed_images": embed_by_ray}
            results[name] = measure_turns(contestants, num_images, arguments.num_repeats)
    return results


def main(arguments: EmbeddingBenchmarkArguments) -> None:
    num_cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(num_cores)
    seconds = compare_speed(arguments, num_cores)
    rates = {
        name: (arguments.num_images - num_cores) / (seconds["whole"][name] - seconds["start"][name])
        for name in seconds["whole"]
    }
    result = {
        "command": " ".join(["python", "-m", "run_scripts.benchmarks.benchmark_embedding", *sys.argv[1:]]),
        "num_cores": num_cores,
        "seconds": seconds,
        "images_per_second_after_start": rates,
        "ratio_after_start": rates["embed_images"] / rates["plain loop"],
        "ratio_with_start": seconds["whole"]["plain loop"] / seconds["whole"]["embed_images"],
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    run_command(main, EmbeddingBenchmarkArguments)
