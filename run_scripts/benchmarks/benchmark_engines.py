# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""The index of this project beside embedded Qdrant: inserts a second, time per query, share of the nearest found.

    pip install qdrant-edge-py   # for the engine qdrant-edge alone
    python -m run_scripts.benchmarks.benchmark_engines --scenes data/scenes --output_dir outputs/benchmark_engines

Images are scenes that the model embeds, queries are captions of other scenes. Where more images are asked for than
`num_scenes`, the rest are scenes drawn again with noise. Every engine answers all queries on one thread, by the clock;
the median counts. What it should have found is computed by comparing with every image.
"""

import importlib
import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import faiss
import numpy as np
import torch

from run_scripts.arguments import run_command
from run_scripts.data.files import format_markdown_table
from run_scripts.data.scenes import SceneDataset
from run_scripts.evaluation.embedding import Features, embed_captions, embed_images, iterate_batches, load_model
from run_scripts.search.image_index import FileState, ImageIndex, IndexWriter
from run_scripts.search.qdrant_index import QdrantIndex, QdrantWriter


TOP_K, BATCH_SIZE = 10, 256
ENGINES = ("flat", "hnsw", "qdrant-local", "qdrant-edge")
# Its search is a loop in Python, and the client warns of more.
MOST_IMAGES = {"qdrant-local": 20_000}


@dataclass(kw_only=True)
class EngineBenchmarkArguments:
    scenes: str = field(metadata={"help": "What `prepare_scenes` has written."})
    output_dir: str = field(metadata={"help": "Where results.json goes."})
    model: str = field(default="checkpoints/fdt-scenes", metadata={"help": "A model with codes."})
    num_scenes: int = field(default=20_000, metadata={"help": "Scenes to embed."})
    numbers_of_images: list[int] = field(
        default_factory=lambda: [20_000, 100_000], metadata={"help": "Sizes of the index."}
    )
    num_queries: int = field(default=50, metadata={"help": "Captions to search by."})
    engines: list[str] = field(
        default_factory=lambda: list(ENGINES), metadata={"help": f"Any of {', '.join(ENGINES)}."}
    )

    def __post_init__(self):
        unknown = sorted(set(self.engines) - set(ENGINES))
        if unknown:
            raise ValueError(f"engines must be among {list(ENGINES)}, got {unknown}")
        if "qdrant-local" in self.engines and "flat" not in self.engines[: self.engines.index("qdrant-local")]:
            raise ValueError(f"engines: qdrant-local is filled from flat, which must precede it, got {self.engines}")


@dataclass(frozen=True)
class Engine:
    """One engine, filled.

    Attributes:
        insert_seconds: that filling it took, until it answered.
        query: from one query, `embeds` or `codes`, to the scores of the images found.
        close: when all is measured.
    """

    insert_seconds: float
    query: Callable[[Features, str], list[float]]
    close: Callable[[], None]


def fill_index(features: Features, folder: Path, kind: str) -> Engine:
    """The index of this project."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with IndexWriter(folder / kind, folder / "images", "model", "hash") as writer:
        for numbers in iterate_batches(range(len(features.embeds)), BATCH_SIZE):
            digests = [number.to_bytes(32, "big") for number in numbers]
            files = {f"{number}.png": (FileState(0, 0, None), number.to_bytes(32, "big")) for number in numbers}
            writer.add(digests, features.select(numbers), files)
        writer.write_search_files(kind, None)
    index = ImageIndex(folder / kind)
    seconds = time.perf_counter() - start
    return Engine(seconds, lambda query, by: [hit.score for hit in index.query(query, by, TOP_K)], index.close)


def fill_local(folder: Path) -> Engine:
    """A collection of qdrant-client's local mode, from the index that `fill_index` left."""
    address = f"qdrant+file://{folder.resolve()}/qdrant/scenes"
    with IndexWriter(folder / "flat", folder / "images", "model", "hash") as writer:
        start = time.perf_counter()
        with QdrantWriter(address, writer) as copy:
            copy.update("flat", None)
        seconds = time.perf_counter() - start
    index = QdrantIndex(address)
    return Engine(seconds, lambda query, by: [hit.score for hit in index.query(query, by, TOP_K)], index.close)


def fill_edge(features: Features, folder: Path) -> Engine:
    """A shard of Qdrant Edge with its graph built."""
    edge = importlib.import_module("qdrant_edge")
    start = time.perf_counter()
    (folder / "edge").mkdir()
    config = edge.EdgeConfig(
        vectors={"embeds": edge.EdgeVectorParams(size=features.embeds.shape[1], distance=edge.Distance.Dot)},
        sparse_vectors={"codes": edge.EdgeSparseVectorParams()},
        max_search_threads=1,
    )
    shard = edge.EdgeShard.create(str(folder / "edge"), config)
    for numbers in iterate_batches(range(len(features.embeds)), BATCH_SIZE):
        points = [
            edge.Point(number, {"embeds": embeds.tolist(), "codes": edge.SparseVector(codes, weights)}, {"path": "a"})
            for number, embeds, (codes, weights) in zip(
                numbers, features.embeds[numbers], to_sparse_lists(features.code_weights[numbers]), strict=True
            )
        ]
        shard.update(edge.UpdateOperation.upsert_points(points))
    shard.optimize()
    shard.flush()
    seconds = time.perf_counter() - start

    def query(features: Features, by: str) -> list[float]:
        vector = features.embeds[0].tolist()
        if by == "codes":
            vector = edge.SparseVector(*next(to_sparse_lists(features.code_weights)))
        request = edge.SearchRequest(edge.Query.Nearest(vector, by), TOP_K, with_payload=True)
        return [point.score for point in shard.search(request)]

    return Engine(seconds, query, shard.close)


def to_sparse_lists(code_weights: torch.Tensor) -> Iterator[tuple[list[int], list[float]]]:
    """Active codes and weights of each row, of length 1."""
    for row in torch.nn.functional.normalize(code_weights, dim=1):
        codes = row.nonzero()[:, 0]
        yield codes.tolist(), row[codes].tolist()


def resample(features: Features, num_images: int) -> Features:
    """These images and, up to the number, images drawn from them with noise on embeddings and on active codes."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(len(features.embeds), (max(num_images - len(features.embeds), 0),), generator=generator)
    embeds, code_weights = features.embeds[rows], features.code_weights[rows]
    dim = embeds.shape[1]
    embeds = embeds + 0.3 / dim**0.5 * torch.randn(embeds.shape, generator=generator)  # of length 0.3
    code_weights = code_weights * (0.3 * torch.randn(code_weights.shape, generator=generator)).exp()
    return Features(
        torch.cat([features.embeds, torch.nn.functional.normalize(embeds, dim=1)])[:num_images],
        torch.cat([features.code_weights, code_weights / code_weights.sum(dim=1, keepdim=True)])[:num_images],
    )


def find_scores(images: Features, queries: Features) -> dict[str, list[np.ndarray]]:
    """For each query the `TOP_K` highest scores, by comparing with all images; of codes those above 0."""
    normalize = torch.nn.functional.normalize
    scores = {
        "embeds": queries.embeds @ images.embeds.T,
        "codes": normalize(queries.code_weights, dim=1) @ normalize(images.code_weights, dim=1).T,
    }
    highest = {by: values.topk(TOP_K, dim=1).values for by, values in scores.items()}
    return {
        by: [row[row > 0].numpy() if by == "codes" else row.numpy() for row in rows] for by, rows in highest.items()
    }


def measure_engine(engine: Engine, queries: Features, expected: dict[str, list[np.ndarray]]) -> dict[str, dict]:
    """Median milliseconds, and the share of the `TOP_K` nearest images that were found, of each way to search."""
    results = {}
    for by, all_scores in expected.items():
        seconds, shares = [], []
        for number, nearest in enumerate(all_scores):
            query = queries.select([number])
            start = time.perf_counter()
            scores = engine.query(query, by)
            seconds.append(time.perf_counter() - start)
            shares.append(np.sum(np.array(scores) >= nearest[-1] - 1e-5) / len(nearest))
        results[by] = {"milliseconds": 1000 * statistics.median(seconds), "recall": float(np.mean(shares))}
    engine.close()
    return results


def compare_engines(arguments: EngineBenchmarkArguments) -> dict[str, dict[str, dict]]:
    """What was measured, by number of images and engine."""
    scenes = SceneDataset(arguments.scenes)
    model, processor = load_model(arguments.model, "cpu")
    images = embed_images(model, processor, (scenes[number]["image"] for number in range(arguments.num_scenes)))
    others = range(arguments.num_scenes, arguments.num_scenes + arguments.num_queries)
    queries = embed_captions(model, processor, [scenes[number]["caption"] for number in others])
    results = {}
    for num_images in arguments.numbers_of_images:
        features = resample(images, num_images)
        expected = find_scores(features, queries)
        folder = Path(arguments.output_dir) / f"index-{num_images}"
        shutil.rmtree(folder, ignore_errors=True)
        rows = results[str(num_images)] = {}
        for name in arguments.engines:
            if num_images > MOST_IMAGES.get(name, num_images):
                continue
            fill = {
                "qdrant-local": lambda folder=folder: fill_local(folder),
                "qdrant-edge": lambda folder=folder, features=features: fill_edge(features, folder),
            }.get(name, lambda folder=folder, features=features, name=name: fill_index(features, folder, name))
            engine = fill()
            inserts = num_images / engine.insert_seconds
            rows[name] = {"inserts_per_second": inserts, **measure_engine(engine, queries, expected)}
        shutil.rmtree(folder)
    return results


def format_engines(results: dict[str, dict[str, dict]]) -> str:
    """The results as a Markdown table."""
    headings = ["images", "engine", "inserts a second"]
    for by in ("embeds", "codes"):
        headings += [f"{by}: ms a query", "of the 10 nearest found"]
    rows = []
    for num_images, engines in results.items():
        for name, row in engines.items():
            cells = [f"{int(num_images):,}", name, f"{row['inserts_per_second']:,.0f}"]
            for by in ("embeds", "codes"):
                cells += [f"{row[by]['milliseconds']:.2f}", f"{row[by]['recall']:.1%}"]
            rows.append(cells)
    return format_markdown_table(headings, rows, num_left=2)


def main(arguments: EngineBenchmarkArguments) -> None:
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    results = {
        "command": " ".join(["python", "-m", "run_scripts.benchmarks.benchmark_engines", *sys.argv[1:]]),
        "engines": compare_engines(arguments),
    }
    print(format_engines(results["engines"]))
    (Path(arguments.output_dir) / "results.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    run_command(main, EngineBenchmarkArguments)
