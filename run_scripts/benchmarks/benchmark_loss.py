# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""What the loss of a global batch costs each process: with all logits, and with those of its own pairs alone.

    python -m run_scripts.benchmarks.benchmark_loss

Forward and backward from random embeddings, gathering included, on CPU processes of one thread each. Every way runs in
processes of its own, since a process's peak of memory never falls.
"""

import resource
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from modeling_fdt.loss_fdt import (
    contrastive_logits,
    contrastive_loss,
    gather_global_batch,
    global_contrastive_loss,
)
from run_scripts.arguments import run_command


@dataclass
class LossBenchmarkArguments:
    num_pairs: int = field(default=4096, metadata={"help": "Pairs of the global batch."})
    dim: int = field(default=512, metadata={"help": "Length of an embedding."})
    num_processes: int = field(default=2, metadata={"help": "Processes that share the pairs."})
    num_steps: int = field(default=5, metadata={"help": "Steps whose median is printed; one more comes before."})

    def __post_init__(self):
        for name in ("num_pairs", "dim", "num_processes", "num_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_pairs % self.num_processes:
            raise ValueError(f"num_pairs must be a multiple of {self.num_processes} processes, got {self.num_pairs}")


def compute_loss_of_all(image_embeds, text_embeds, logit_scale) -> torch.Tensor:
    """The same loss, for which every process computes the logits of all pairs."""
    image_embeds, text_embeds = gather_global_batch(image_embeds, text_embeds)
    return contrastive_loss(contrastive_logits(image_embeds, text_embeds, logit_scale))


def compute_loss_of_own(image_embeds, text_embeds, logit_scale) -> torch.Tensor:
    """The loss as models and trainer compute it."""
    return global_contrastive_loss(image_embeds, text_embeds, logit_scale)[0]


WAYS = {"all logits": compute_loss_of_all, "logits of its own pairs": compute_loss_of_own}


def measure_process(rank: int, way: str, arguments: LossBenchmarkArguments, folder: str) -> None:
    """Write this process's loss, growth of peak memory in MB and median core seconds into the folder."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", arguments.num_processes)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=arguments.num_processes)
    # Of a pair each: what libraries take once is not counted.
    take_loss_step(WAYS[way], arguments.num_processes, arguments)
    before, seconds = read_peak_memory(), []
    for _ in range(arguments.num_steps + 1):
        started = time.process_time()
        loss = take_loss_step(WAYS[way], arguments.num_pairs, arguments)
        seconds.append(time.process_time() - started)
    megabytes = (read_peak_memory() - before) / 1e6
    torch.save([loss, megabytes, statistics.median(seconds[1:])], f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def take_loss_step(compute_loss, num_pairs: int, arguments: LossBenchmarkArguments) -> float:
    """Loss and gradients of pairs that are the same whatever computes them."""
    generator = torch.Generator().manual_seed(dist.get_rank())
    size = 2, num_pairs // arguments.num_processes, arguments.dim
    embeds = nn.functional.normalize(torch.randn(size, generator=generator), dim=-1).requires_grad_()
    logit_scale = torch.tensor(3.0, requires_grad=True)
    loss = compute_loss(*embeds, logit_scale)
    loss.backward()
    return loss.item()


def read_peak_memory() -> int:
    """The most bytes that this process ever held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main(arguments: LossBenchmarkArguments) -> None:
    results = {}
    for way in WAYS:
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(measure_process, (way, arguments, folder), arguments.num_processes)
            results[way] = [torch.load(path, weights_only=True) for path in sorted(Path(folder).glob("*.pt"))]
    losses = [loss for ranks in results.values() for loss, *_ in ranks]
    if max(losses) - min(losses) > 1e-5:
        raise RuntimeError(f"The ways differ in their losses: {losses}")
    print(f"| each of {arguments.num_processes} processes computes | MB | core seconds |\n|---|---:|---:|")
    for way, ranks in results.items():
        _, megabytes, seconds = (max(numbers) for numbers in zip(*ranks, strict=True))
        print(f"| {way} | {megabytes:.0f} | {seconds:.3f} |")


if __name__ == "__main__":
    run_command(main, LossBenchmarkArguments)
