# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""What grounding costs: eager against fast, a training step of FDT against CLIP, and growth with size.

    python -m run_scripts.benchmarks.benchmark_grounding --output_dir outputs/benchmark
    python -m run_scripts.benchmarks.benchmark_grounding --device cuda --output_dir outputs/benchmark_cuda

All ratios are measured side by side: the contestants take turns, and the median of each counts. Memory is the peak of
a forward and backward pass above what every implementation holds, its inputs, result and gradients: of the process on
CPU (in a process of its own for each number), of torch's allocator on CUDA. Prints tables, and writes results.json and
scaling.png.
"""

import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
import torch
import transformers
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from modeling_fdt import FDTConfig, FDTModel, pooled_grounding_scores, sparsemax
from run_scripts.arguments import run_command
from run_scripts.data.files import format_markdown_table


TEMPERATURE = 1000.0
PARTS = ("grounding", "step", "scaling")


@dataclass
class BenchmarkArguments:
    output_dir: str = field(metadata={"help": "Where results.json and scaling.png go."})
    device: Literal["cpu", "cuda"] = field(default="cpu", metadata={"help": "Where to measure."})
    parts: list[str] = field(default_factory=lambda: list(PARTS), metadata={"help": f"Any of {', '.join(PARTS)}."})
    fast: Literal["auto", "chunked", "triton"] = field(
        default="auto",
        metadata={"help": "The implementation that is held against eager by `grounding` and `scaling`."},
    )
    num_repeats: int = field(default=5, metadata={"help": "Turns that each contestant takes."})
    codebook_size: int = field(default=16384, metadata={"help": "Number of codes."})
    codebook_dim: int = field(default=512, metadata={"help": "Size of a code."})
    step_batch_size: int | None = field(
        default=None, metadata={"help": "Pairs in a training step; 32 on CPU and 512 on CUDA if not given."}
    )

    def __post_init__(self):
        unknown = sorted(set(self.parts) - set(PARTS))
        if unknown:
            raise ValueError(f"parts must be among {list(PARTS)}, got {unknown}")


@dataclass(frozen=True)
class Shape:
    """One problem: a batch of rows of tokens, a codebook, the type of the numbers."""

    batch_size: int
    num_tokens: int
    codebook_size: int
    codebook_dim: int
    dtype: str
    device: str

    def __str__(self) -> str:
        return f"({self.batch_size}, {self.num_tokens}) x {self.codebook_size}, {self.dtype}"

    @property
    def result_bytes(self) -> int:
        """What the code weights (float32) and the gradients of queries and codebook take."""
        num_gradients = (self.batch_size * self.num_tokens + self.codebook_size) * self.codebook_dim
        return 4 * self.batch_size * self.codebook_size + getattr(torch, self.dtype).itemsize * num_gradients

    @property
    def flop(self) -> int:
        """Operations of the one matrix product that no implementation can avoid."""
        return 2 * self.batch_size * self.num_tokens * self.codebook_size * self.codebook_dim


def make_grounding(shape: Shape, implementation: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """Pooling and sparsemax on random inputs: a forward pass alone, and one with its backward pass."""
    generator = torch.Generator().manual_seed(0)
    options = {"dtype": getattr(torch, shape.dtype), "device": shape.device}
    queries = torch.randn(shape.batch_size, shape.num_tokens, shape.codebook_dim, generator=generator).to(**options)
    codebook = torch.randn(shape.codebook_size, shape.codebook_dim, generator=generator).to(**options)
    target = torch.randn(shape.batch_size, shape.codebook_size, generator=generator).to(shape.device)
    queries.requires_grad_()
    codebook.requires_grad_()

    def compute() -> torch.Tensor:
        return sparsemax(pooled_grounding_scores(queries, codebook, implementation=implementation) / TEMPERATURE)

    def forward() -> None:
        with torch.no_grad():
            compute()

    def forward_backward() -> None:
        queries.grad = codebook.grad = None
        (compute() * target).sum().backward()

    return forward, forward_backward


def make_matmul(shape: Shape) -> Callable[[], None]:
    """The plain matrix product of the same size: the bound of any implementation's forward pass."""
    options = {"dtype": getattr(torch, shape.dtype), "device": shape.device}
    queries = torch.randn(shape.batch_size * shape.num_tokens, shape.codebook_dim).to(**options)
    codebook = torch.randn(shape.codebook_size, shape.codebook_dim).to(**options)
    return lambda: queries @ codebook.T


def measure_seconds(contestants: dict[str, Callable[[], None]], num_repeats: int, device: str) -> dict[str, float]:
    """Median seconds of each contestant; they take turns, after one turn that does not count."""
    times = {name: [] for name in contestants}
    for turn in range(num_repeats + 1):
        for name, run in contestants.items():
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn > 0:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def _report_cpu_peak(shape: Shape, implementation: str, connection) -> None:
    _, run = make_grounding(shape, implementation)
    # One small pass first, so that what libraries allocate once does not count.
    make_grounding(Shape(2, 2, 64, 64, shape.dtype, "cpu"), implementation)[1]()
    before = read_resident_bytes("VmRSS")
    run()
    connection.send(max(read_resident_bytes("VmHWM") - before, 0))


def read_resident_bytes(name: str) -> int:
    """This process's resident memory now (`VmRSS`) or at its peak (`VmHWM`), as Linux tells it."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(name + ":")) * 1024


def measure_peak_bytes(shape: Shape, implementation: str) -> int:
    """Peak memory of a forward and backward pass above that of inputs, result and gradients."""
    return measure_growth(shape, implementation) - shape.result_bytes


def measure_growth(shape: Shape, implementation: str) -> int:
    """Peak memory of a forward and backward pass above what was there before."""
    if shape.device == "cpu":
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_report_cpu_peak, args=(shape, implementation, sender))
        process.start()
        peak = receiver.recv()
        process.join()
        return peak
    make_grounding(shape, implementation)[1]()  # compiles kernels and times their tiles
    _, run = make_grounding(shape, implementation)  # without gradients so far
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def compare_grounding(shape: Shape, arguments: BenchmarkArguments) -> dict:
    """Eager, fast and the plain matrix product, side by side."""
    eager_forward, eager = make_grounding(shape, "eager")
    fast_forward, fast = make_grounding(shape, arguments.fast)
    seconds = measure_seconds(
        {"eager": eager, "fast": fast, "eager_forward": eager_forward, "fast_forward": fast_forward}
        | {"matmul": make_matmul(shape)},
        arguments.num_repeats,
        shape.device,
    )
    peaks = {
        name: measure_peak_bytes(shape, implementation)
        for name, implementation in (("eager", "eager"), ("fast", arguments.fast))
    }
    return {
        "shape": asdict(shape),
        "seconds": seconds,
        "time_ratio": seconds["fast"] / seconds["eager"],
        "forward_share_of_matmul_rate": seconds["matmul"] / seconds["fast_forward"],
        "matmul_tflops": shape.flop / seconds["matmul"] / 1e12,
        "peak_bytes": peaks,
        "memory_ratio": peaks["fast"] / peaks["eager"],
    }


def make_training_step(model: torch.nn.Module, inputs: dict, dtype: str | None) -> Callable[[], None]:
    """One step of AdamW on one batch, in autocast where `dtype` is given."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    device = next(model.parameters()).device.type

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device, dtype=getattr(torch, dtype or "bfloat16"), enabled=dtype is not None):
            loss = model(**inputs, return_loss=True).loss
        loss.backward()
        optimizer.step()

    return step


def compare_steps(arguments: BenchmarkArguments) -> dict:
    """A training step of ViT-B/32 FDT and of CLIP with the same towers, side by side."""
    device = arguments.device
    batch_size = arguments.step_batch_size or (32 if device == "cpu" else 512)
    dtype = None if device == "cpu" else "bfloat16"
    sizes = {"codebook_size": arguments.codebook_size, "codebook_dim": arguments.codebook_dim}
    config = FDTConfig.vit_b_32(**sizes)
    clip_config = CLIPConfig(
        text_config=CLIPTextConfig(**config.text_config.to_diff_dict()),
        vision_config=CLIPVisionConfig(**config.vision_config.to_diff_dict()),
        projection_dim=arguments.codebook_dim,
    )
    input_ids = torch.randint(1, 49000, (batch_size, 77))
    input_ids[:, -1] = config.text_config.eos_token_id
    inputs = {"pixel_values": torch.randn(batch_size, 3, 224, 224), "input_ids": input_ids}
    inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
    models = {"clip": CLIPModel(clip_config).to(device).train(), "fdt": FDTModel(config).to(device).train()}
    steps = {name: make_training_step(model, inputs, dtype) for name, model in models.items()}
    seconds = measure_seconds(steps, arguments.num_repeats, device)
    return {
        "batch_size": batch_size,
        "dtype": dtype or "float32",
        "seconds": seconds,
        "time_ratio": seconds["fdt"] / seconds["clip"],
        "arithmetic_bound": bound_step_ratio(config),
    }


def bound_step_ratio(config: FDTConfig) -> float:
    """FDT over CLIP by multiply-adds: the towers three times (forward, backward), the score product once."""

    def count_tower(tower, num_tokens: int) -> int:
        layer = 4 * tower.hidden_size**2 + 2 * tower.hidden_size * tower.intermediate_size
        attention = 2 * num_tokens * tower.hidden_size
        return num_tokens * tower.num_hidden_layers * (layer + attention)

    num_patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    patch_embedding = num_patches * 3 * config.vision_config.patch_size**2 * config.vision_config.hidden_size
    towers = count_tower(config.vision_config, num_patches + 1) + patch_embedding + count_tower(config.text_config, 77)
    scores = (num_patches + 77) * config.codebook_size * config.codebook_dim
    projections = sum(
        num_tokens * config.codebook_dim * (tower.hidden_size + config.codebook_dim)
        for tower, num_tokens in ((config.vision_config, num_patches), (config.text_config, 77))
    )
    return (3 * towers + scores + 3 * projections) / (3 * towers)


def sweep(arguments: BenchmarkArguments, dtype: str) -> dict[str, list[dict]]:
    """Eager and fast as batch, tokens and codebook grow, one at a time."""
    base = {"batch_size": 16, "num_tokens": 49, "codebook_size": 4096}
    grown = {"batch_size": (8, 16, 32, 64), "num_tokens": (16, 49, 98, 196), "codebook_size": (1024, 4096, 16384)}
    return {
        name: [
            compare_grounding(
                Shape(
                    **{**base, name: value}, codebook_dim=arguments.codebook_dim, dtype=dtype, device=arguments.device
                ),
                arguments,
            )
            for value in values
        ]
        for name, values in grown.items()
    }


def plot_scaling(scaling: dict[str, list[dict]], path: Path) -> None:
    """Seconds and memory of eager and fast against each size, as PNG."""
    figure, grid = plt.subplots(2, 3, figsize=(12, 7), layout="constrained")
    for column, (name, rows) in zip(grid.T, scaling.items(), strict=True):
        sizes = [row["shape"][name] for row in rows]
        for contestant in ("eager", "fast"):
            column[0].loglog(sizes, [row["seconds"][contestant] for row in rows], marker="o", label=contestant)
            column[1].loglog(
                sizes, [row["peak_bytes"][contestant] / 2**20 for row in rows], marker="o", label=contestant
            )
        column[0].loglog(sizes, [row["seconds"]["matmul"] for row in rows], "k:", label="matrix product alone")
        column[0].set(ylabel="seconds, forward and backward")
        column[1].set(xlabel=name, ylabel="peak memory, MiB")
        column[0].legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def format_grounding(rows: list[dict]) -> str:
    """Rows of `compare_grounding` as a Markdown table."""
    headings = ["grounding, forward + backward", "eager s", "fast s", "ratio", "matrix product s (bound)"]
    headings += ["forward / bound rate", "eager MiB", "fast MiB", "ratio"]
    cells = []
    for row in rows:
        seconds, peaks = row["seconds"], {name: peak / 2**20 for name, peak in row["peak_bytes"].items()}
        cells.append(
            [
                str(Shape(**row["shape"])),
                *(f"{seconds[name]:.3g}" for name in ("eager", "fast")),
                f"{row['time_ratio']:.2f}",
                f"{seconds['matmul']:.3g}",
                f"{row['forward_share_of_matmul_rate']:.0%}",
                *(f"{peaks[name]:.0f}" for name in ("eager", "fast")),
                f"{row['memory_ratio']:.2f}",
            ]
        )
    return format_markdown_table(headings, cells)


def main(arguments: BenchmarkArguments) -> None:
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', but torch sees no CUDA device")
    torch.manual_seed(0)
    output_dir = Path(arguments.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    dtypes = ["float32"] if arguments.device == "cpu" else ["float32", "bfloat16"]
    results = {
        "command": " ".join(["python", "-m", "run_scripts.benchmarks.benchmark_grounding", *sys.argv[1:]]),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "machine": torch.cuda.get_device_name()
        if arguments.device == "cuda"
        else f"{torch.get_num_threads()} CPU threads",
    }
    print(f"{results['machine']}, torch {torch.__version__}, median of {arguments.num_repeats} turns\n")
    sizes = {"codebook_size": arguments.codebook_size, "codebook_dim": arguments.codebook_dim}
    if "grounding" in arguments.parts:
        shapes = [
            Shape(batch_size, num_tokens, dtype=dtype, device=arguments.device, **sizes)
            for dtype in dtypes
            for batch_size, num_tokens in ((64, 49), (32, 196), (64, 77))
        ]
        results["grounding"] = [compare_grounding(shape, arguments) for shape in shapes]
        print(format_grounding(results["grounding"]) + "\n")
    if "step" in arguments.parts:
        results["step"] = step = compare_steps(arguments)
        title = f"ViT-B/32 training step, batch {step['batch_size']}, {step['dtype']}"
        cells = [f"{step['seconds'][name]:.3g}" for name in ("clip", "fdt")]
        cells += [f"{step[name]:.3f}" for name in ("time_ratio", "arithmetic_bound")]
        row = ["forward, backward, AdamW", *cells]
        print(format_markdown_table([title, "CLIP s", "FDT s", "ratio", "bound"], [row]) + "\n")
    if "scaling" in arguments.parts:
        results["scaling"] = sweep(arguments, dtypes[-1])
        print(format_grounding([row for rows in results["scaling"].values() for row in rows]))
        plot_scaling(results["scaling"], output_dir / "scaling.png")
    (output_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    run_command(main, BenchmarkArguments)
