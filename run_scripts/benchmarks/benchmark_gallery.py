# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Time, size and memory of the gallery on made-up features: no model, no data.

    python -m run_scripts.benchmarks.benchmark_gallery --output_dir outputs/benchmark_gallery
    python -m run_scripts.benchmarks.benchmark_gallery --num_streamed 1000000

The first command streams rows into the statistics, as the forward pass would, and then times what follows it: the
summaries, the pages, the table and the figures. Images are noise with the spectrum of photographs, so thumbnails
have the size that photographs' have. The second only streams, and tells the memory that it took.
"""

import resource
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from run_scripts.arguments import run_command
from run_scripts.visualization.arguments import VisualizationArguments
from run_scripts.visualization.code_statistics import ModalityStatistics, Sample
from run_scripts.visualization.coherence import Label
from run_scripts.visualization.collection import SAMPLE_SIZE, Collected, finish
from run_scripts.visualization.gallery import GalleryText
from run_scripts.visualization.records import (
    NUM_IMAGE_CODES,
    Caption,
    ImageRecord,
    MarkedWords,
    encode_heat_maps,
    save_thumbnail,
)


GRID = (7, 7)
BATCH_SIZE = 250
VOCABULARY = [
    f"{first}{second}" for first in ("ka", "lo", "mi", "ne", "su", "ti") for second in ("ra", "bo", "fe", "wu")
]


@dataclass
class GalleryBenchmarkArguments:
    output_dir: str | None = field(default=None, metadata={"help": "Write a gallery there; new or empty."})
    num_images: int = field(default=3000, metadata={"help": "Images of the gallery."})
    num_streamed: int | None = field(default=None, metadata={"help": "Only stream so many rows, and tell the memory."})
    num_codes: int = field(default=1024, metadata={"help": "Size of the codebook."})


class SyntheticRows:
    """Rows of a stream, each with random code weights, a tenth of them above 0, and a caption of twelve words."""

    def __init__(self, num_codes: int, thumbnails: Path | None):
        self.num_codes, self.thumbnails = num_codes, thumbnails
        self.generator = np.random.default_rng(0)
        self.codebook = torch.randn(num_codes, 64)
        self.num_rows = 0
        self.photographs = [] if thumbnails is None else [self.photograph() for _ in range(20)]

    def weights(self) -> torch.Tensor:
        weights = torch.rand(BATCH_SIZE, self.num_codes)
        # Not scaled to a sum of 1: every row has the same chance to be among the strongest of a code.
        return weights * (weights > 0.9)

    def heat_maps(self, row: int, codes: list[int]) -> list:
        return encode_heat_maps(torch.rand(len(codes), *GRID))

    def words(self) -> list[str]:
        return self.generator.choice(VOCABULARY, 12).tolist()

    def image(self, row: int) -> ImageRecord:
        size = (96, 72)
        if self.thumbnails is not None:
            number = self.num_rows + row
            size = save_thumbnail(self.photographs[number % 20], self.thumbnails / f"{number}.webp", 96)
        codes = self.generator.choice(self.num_codes, NUM_IMAGE_CODES, replace=False).tolist()
        maps = zip(codes, [0.1] * len(codes), self.heat_maps(row, codes), strict=True)
        words = self.words()
        label = Label(frozenset(words))
        box = (12.5, 0, 75, 100)
        shared = [(code, 0.1) for code in codes[:3]]
        return ImageRecord(" ".join(words), label, size, box, list(maps), 10.0, 3.0, shared)

    def caption(self, row: int) -> Caption:
        words = self.words()
        ends = np.cumsum([len(word) + 1 for word in words]).tolist()
        spans = [(end - len(word) - 1, end - 1) for word, end in zip(words, ends, strict=True)]
        return Caption(" ".join(words), Label(frozenset(words)), self.num_rows + row, words, spans)

    def marked_words(self, row: int, codes: list[int]) -> list[MarkedWords]:
        return [MarkedWords("012345678999", 11) for _ in codes]

    def photograph(self) -> Image.Image:
        """Noise whose amplitude falls with the inverse of the frequency, as that of photographs does."""
        height, width = 240, 320
        frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
        frequency[0, 0] = 1
        spectrum = np.fft.fft2(self.generator.standard_normal((3, height, width))) / frequency
        pixels = np.fft.ifft2(spectrum).real
        return Image.fromarray((128 + 50 * pixels / pixels.std()).clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def stream(rows: SyntheticRows, num_rows: int, num_examples: int) -> Collected:
    """What `visualization.collection.collect` does, without a model."""
    image, text = (ModalityStatistics(rows.num_codes, num_examples) for _ in range(2))
    sample = Sample(SAMPLE_SIZE, seed=0)
    for start in range(0, num_rows, BATCH_SIZE):
        rows.num_rows = start
        ids = list(range(start, start + BATCH_SIZE))
        forgotten = image.update(rows.weights(), ids, rows.image, rows.heat_maps)
        text.update(rows.weights(), ids, rows.caption, rows.marked_words)
        for row in forgotten if rows.thumbnails is not None else []:
            (rows.thumbnails / f"{row}.webp").unlink()
        for _ in range(BATCH_SIZE):
            sample.add(Label(frozenset(rows.words())))
    return Collected(image, text, sample)


def main(arguments: GalleryBenchmarkArguments) -> None:
    if (arguments.output_dir is None) == (arguments.num_streamed is None):
        raise ValueError("give either output_dir or num_streamed")
    if arguments.output_dir is None:
        start = time.perf_counter()
        stream(SyntheticRows(arguments.num_codes, None), arguments.num_streamed, num_examples=8)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{arguments.num_streamed:,} rows: {time.perf_counter() - start:.0f} s, peak memory {memory:.0f} MiB")
        return
    output_dir = Path(arguments.output_dir)
    (output_dir / "images").mkdir(parents=True)
    options = VisualizationArguments(model="synthetic", dataset="synthetic", output_dir=str(output_dir))
    rows = SyntheticRows(arguments.num_codes, output_dir / "images")
    collected = stream(rows, arguments.num_images, options.num_examples)
    start, cpu_start = time.perf_counter(), time.process_time()
    finish(collected, rows.codebook, GalleryText("synthetic", "synthetic"), options)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    sizes = {path: path.stat().st_size for path in output_dir.rglob("*") if path.is_file()}
    print(f"{arguments.num_codes} codes, {arguments.num_images} images: {seconds:.1f} s ({cpu_seconds:.1f} s of CPU)")
    print(f"{len(sizes)} files, {sum(sizes.values()) / 1e6:.1f} MB")
    for part in ("code", "image", "images", "figures"):
        size = sum(size for path, size in sizes.items() if path.parent.name == part)
        print(f"  {part}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    run_command(main, GalleryBenchmarkArguments)
