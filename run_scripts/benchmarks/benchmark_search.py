# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Search by embeddings against search by code weights: what is found, bytes on disk, time per query, growth.

    python -m run_scripts.benchmarks.benchmark_search --model outputs/emoji_all_styles \
        --dataset data/emoji_all_styles --output_dir outputs/benchmark_search

The contestants take turns at every query, on one thread, with the functions that `search_images` uses. Time is that
of the CPU, which other processes on the machine do not stretch; the median over the queries counts. Ratios are to the
flat index of the embeddings, sizes those of the files. Prints tables and writes results.json.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import faiss
import numpy as np
import scipy.sparse
import torch

from run_scripts.arguments import PairArguments, run_command
from run_scripts.data.files import format_markdown_table
from run_scripts.data.source import open_source
from run_scripts.evaluation.embedding import Features, embed_captions, embed_images, load_model
from run_scripts.evaluation.inputs import read_images
from run_scripts.search.nearest import (
    best,
    build_dense_index,
    build_inverted_index,
    keep_largest,
    score_images,
    search_dense,
    stack_codes,
)


TOP_K = 10
PARTS = ("recall", "growth")
COSTS = ["bytes an image", "ratio", "ms a query", "ratio"]


@dataclass(kw_only=True)
class SearchBenchmarkArguments(PairArguments):
    output_dir: str = field(metadata={"help": "Where results.json goes."})
    model: str | None = field(default=None, metadata={"help": "A model with codes, for `recall`."})
    dataset: str | None = field(default=None, metadata={"help": "Images with captions, for `recall`."})
    parts: list[str] = field(default_factory=lambda: list(PARTS), metadata={"help": f"Any of {', '.join(PARTS)}."})
    numbers_of_images: list[int] = field(
        default_factory=lambda: [10_000, 50_000, 200_000], metadata={"help": "Sizes of the index in `growth`."}
    )
    numbers_of_codes: list[int] = field(
        default_factory=lambda: [256, 128, 64, 32, 16], metadata={"help": "Codes kept of an image, for `recall`."}
    )
    active_codes: list[int] = field(
        default_factory=lambda: [16, 64, 256], metadata={"help": "Active codes of an image in `growth`."}
    )
    codebook_size: int = field(default=16384, metadata={"help": "Number of codes in `growth`."})
    codebook_dim: int = field(default=512, metadata={"help": "Size of an embedding in `growth`."})
    dense_indexes: list[str] = field(
        default_factory=lambda: ["flat"],
        metadata={"help": "Contestants of `growth`: `flat`, and `hnsw`, slow to build."},
    )
    num_queries: int = field(default=100, metadata={"help": "Queries that are timed."})

    def __post_init__(self):
        unknown = sorted(set(self.parts) - set(PARTS))
        if unknown:
            raise ValueError(f"parts must be among {list(PARTS)}, got {unknown}")
        if "recall" in self.parts and (self.model is None or self.dataset is None):
            raise ValueError(f"the part recall needs model and dataset, got {self.model!r} and {self.dataset!r}")


@dataclass(frozen=True)
class Contestant:
    """One way to search.

    Attributes:
        by: what of a query it takes, `embeds` or `code_weights`.
        search: from that and a number to the rows of so many images, best first.
        num_bytes: of its file.
    """

    by: str
    search: Callable[[np.ndarray, int], np.ndarray]
    num_bytes: int


def make_dense(embeds: np.ndarray, kind: str) -> Contestant:
    """Search by embeddings."""
    index = build_dense_index(embeds, kind)
    num_bytes = len(faiss.serialize_index(index))
    return Contestant("embeds", lambda query, top_k: search_dense(index, query[None], top_k)[1][0], num_bytes)


def make_sparse(inverted_index: scipy.sparse.csr_array) -> Contestant:
    """Search by code weights."""
    with tempfile.TemporaryFile() as file:
        scipy.sparse.save_npz(file, inverted_index, compressed=False)
        num_bytes = file.tell()
    return Contestant("code_weights", lambda query, top_k: best(score_images(inverted_index, query), top_k), num_bytes)


def to_sparse(code_weights: np.ndarray, num_codes: int | None = None) -> scipy.sparse.csr_array:
    """Code weights as a sparse matrix; of each row the `num_codes` largest, or all."""
    num_codes = num_codes or code_weights.shape[1]
    active = [np.flatnonzero(weights).astype(np.int32) for weights in code_weights]
    kept = [
        keep_largest(codes, weights[codes], num_codes) for codes, weights in zip(active, code_weights, strict=True)
    ]
    return stack_codes(*zip(*kept, strict=True), code_weights.shape[1])


def make_contestants(images: Features, numbers_of_codes: list[int]) -> dict[str, Contestant]:
    """All ways to search among these images."""
    embeds, code_weights = images.embeds.numpy(), images.code_weights.numpy()
    contestants = {f"embeds, {kind}": make_dense(embeds, kind) for kind in ("flat", "hnsw")}
    whole = to_sparse(code_weights)
    contestants["codes, cosine"] = make_sparse(build_inverted_index(whole))
    contestants["codes, inner product"] = make_sparse(whole.T.tocsr())
    for number in numbers_of_codes:
        contestants[f"{number} largest codes, cosine"] = make_sparse(
            build_inverted_index(to_sparse(code_weights, number))
        )
    return contestants


def measure_cpu_seconds(contestants: dict[str, Contestant], queries: dict[str, np.ndarray]) -> dict[str, float]:
    """Median CPU time of each contestant over its queries, of which all have the same number; they take turns."""
    seconds = {name: [] for name in contestants}
    for turn in zip(*(queries[name] for name in contestants), strict=True):
        for (name, contestant), query in zip(contestants.items(), turn, strict=True):
            start = time.process_time()
            contestant.search(query, TOP_K)
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def measure_recall(
    contestant: Contestant, queries: Features, is_relevant: np.ndarray, own_rows: np.ndarray | None = None
) -> dict[str, float]:
    """R@1, R@5 and R@10 of what a contestant finds.

    Args:
        queries: of captions or images.
        is_relevant: (num_queries, num_images).
        own_rows: where each query is itself in the index; that does not count as found.
    """
    is_hit = []
    for number, query in enumerate(getattr(queries, contestant.by).numpy()):
        rows = contestant.search(query, TOP_K + 1)
        if own_rows is not None:
            rows = rows[rows != own_rows[number]]
        is_hit.append(is_relevant[number, rows[:TOP_K]])
    return {f"R@{k}": float(np.mean([hits[:k].any() for hits in is_hit])) for k in (1, 5, 10)}


def compare_recall(arguments: SearchBenchmarkArguments) -> dict:
    """What each contestant finds among the images of a data set, by their captions and by each other."""
    dataset = open_source(arguments)
    model, processor = load_model(arguments.model)
    images = embed_images(model, processor, read_images(dataset))
    if images.code_weights is None:
        raise ValueError(f"model={arguments.model!r} has no codes")
    names, labels = np.unique(dataset["caption"][:], return_inverse=True)
    captions = embed_captions(model, processor, names.tolist())
    contestants = make_contestants(images, arguments.numbers_of_codes)
    timed = {
        name: getattr(captions, contestant.by)[: arguments.num_queries].numpy()
        for name, contestant in contestants.items()
    }
    seconds = measure_cpu_seconds(contestants, timed)

    by_caption = np.arange(len(names))[:, None] == labels
    by_image = labels[:, None] == labels
    np.fill_diagonal(by_image, False)
    has_other = np.flatnonzero(by_image.any(axis=1))
    others = Features(images.embeds[has_other], images.code_weights[has_other])
    rows = {
        name: {
            "bytes_per_image": contestant.num_bytes / len(labels),
            "seconds": seconds[name],
            "text to image": measure_recall(contestant, captions, by_caption),
            "image to image": measure_recall(contestant, others, by_image[has_other], own_rows=has_other),
        }
        for name, contestant in contestants.items()
    }
    return {
        "num_images": len(labels),
        "num_captions": len(names),
        "num_image_queries": len(has_other),
        "active_codes_per_image": (images.code_weights > 0).sum(dim=1).float().mean().item(),
        "active_codes_per_caption": (captions.code_weights > 0).sum(dim=1).float().mean().item(),
        "contestants": rows,
    }


def make_random_sparse(
    num_rows: int, num_active: int, codebook_size: int, random: np.random.Generator
) -> scipy.sparse.csr_array:
    """Rows of random weights; the codebook is cut into `num_active` parts, and a row has one code of each."""
    width = codebook_size // num_active
    codes = np.arange(num_active) * width + random.integers(0, width, (num_rows, num_active))
    weights = random.random((num_rows, num_active), dtype=np.float32)
    return stack_codes(list(codes.astype(np.int32)), list(weights), codebook_size)


def compare_growth(arguments: SearchBenchmarkArguments) -> dict[str, dict[str, dict]]:
    """Size and time on made-up features, by number of images and contestant; nothing can be found in them."""
    random = np.random.default_rng(0)
    results = {}
    for num_images in arguments.numbers_of_images:
        embeds = random.standard_normal((num_images, arguments.codebook_dim), dtype=np.float32)
        embeds /= np.linalg.norm(embeds, axis=1, keepdims=True)
        contestants = {f"embeds, {kind}": make_dense(embeds, kind) for kind in arguments.dense_indexes}
        queries = dict.fromkeys(contestants, embeds[: arguments.num_queries])
        for num_active in arguments.active_codes:
            name = f"codes, {num_active} active"
            code_weights = make_random_sparse(num_images, num_active, arguments.codebook_size, random)
            contestants[name] = make_sparse(build_inverted_index(code_weights))
            # A query has as many active codes as the images that it is compared with.
            queries[name] = code_weights[: arguments.num_queries].toarray()
        seconds = measure_cpu_seconds(contestants, queries)
        results[str(num_images)] = {
            name: {"bytes_per_image": contestant.num_bytes / num_images, "seconds": seconds[name]}
            for name, contestant in contestants.items()
        }
    return results


def format_recall(results: dict) -> str:
    """Result of `compare_recall` as a Markdown table."""
    headings = [
        f"{results['num_images']} images",
        f"text to image, {results['num_captions']} captions: R@1 / 5 / 10",
        f"image to image, {results['num_image_queries']} images: R@1 / 5 / 10",
    ]
    rows = []
    for name, row in results["contestants"].items():
        recalls = [" / ".join(f"{v:.1%}" for v in row[task].values()) for task in ("text to image", "image to image")]
        rows.append([name, *recalls, *format_cost(row, results["contestants"])])
    return format_markdown_table(headings + COSTS, rows)


def format_growth(results: dict) -> str:
    """Result of `compare_growth` as a Markdown table."""
    rows = [
        [f"{int(num_images):,}", name, *format_cost(row, contestants)]
        for num_images, contestants in results.items()
        for name, row in contestants.items()
    ]
    return format_markdown_table(["images", "search by", *COSTS], rows, num_left=2)


def format_cost(row: dict, rows: dict[str, dict]) -> list[str]:
    """Size and time, as `COSTS` names them, each with its ratio to the flat index."""
    flat = rows["embeds, flat"]
    size, seconds = row["bytes_per_image"], row["seconds"]
    ratios = (f"{size / flat['bytes_per_image']:.2f}", f"{seconds / flat['seconds']:.2f}")
    return [f"{size:,.0f}", ratios[0], f"{1000 * seconds:.3g}", ratios[1]]


def main(arguments: SearchBenchmarkArguments) -> None:
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    results = {
        "command": " ".join(["python", "-m", "run_scripts.benchmarks.benchmark_search", *sys.argv[1:]]),
        "versions": {"faiss": faiss.__version__, "scipy": scipy.__version__, "torch": torch.__version__},
    }
    print(f"FAISS {faiss.__version__}, SciPy {scipy.__version__}, one thread\n")
    if "recall" in arguments.parts:
        results["recall"] = recall = compare_recall(arguments)
        print(format_recall(recall))
        print(
            f"\nActive codes: {recall['active_codes_per_image']:.1f} of an image, "
            f"{recall['active_codes_per_caption']:.1f} of a caption.\n"
        )
    if "growth" in arguments.parts:
        results["growth"] = compare_growth(arguments)
        print(format_growth(results["growth"]))
    output_dir = Path(arguments.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    run_command(main, SearchBenchmarkArguments)
