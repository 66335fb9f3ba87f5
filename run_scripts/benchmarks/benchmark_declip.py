# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""What a step with DeCLIP's objective costs against one with FDT's contrastive loss, on the same model and data.

    python -m run_scripts.prepare_synthetic_pairs
    python -m run_scripts.benchmarks.benchmark_declip \\
        --changes '{"dataset": "data/synthetic_pairs/{00000..00007}.tar", "per_device_train_batch_size": 16}'

A step is forward, backward and optimiser, without the preparation of data, which workers do meanwhile.
"""

import statistics
import tempfile
import time
from dataclasses import dataclass, field, fields

import torch
from transformers import TrainerCallback

from run_scripts.arguments import build_arguments, find_config, merge, parse_json, read_config, run_command
from run_scripts.training.arguments import PRETRAINING, ObjectiveArguments
from run_scripts.training.pretraining import train


@dataclass
class DeclipBenchmarkArguments:
    config: str = field(
        default="run_scripts/configs/cc3m_declip_vit_b32.json", metadata={"help": "Of a run with DeCLIP's objective."}
    )
    changes: dict | str | None = field(default=None, metadata={"help": "Changes to the config."})
    num_steps: int = field(default=6, metadata={"help": "Steps of each objective; the first is not counted."})

    def __post_init__(self):
        self.changes = parse_json("changes", self.changes) or {}
        if self.num_steps < 2:
            raise ValueError(f"num_steps must be at least 2, got {self.num_steps}")


class StepClock(TrainerCallback):
    """Takes the time of every step: that of this process's cores, and that on the wall."""

    def __init__(self):
        self.on_core, self.by_clock = [], []

    def on_step_begin(self, *args, **kwargs):
        self.started = self._read()

    def on_step_end(self, *args, **kwargs):
        on_core, by_clock = (now - then for now, then in zip(self._read(), self.started, strict=True))
        self.on_core.append(on_core)
        self.by_clock.append(by_clock)

    def _read(self) -> tuple[float, float]:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.process_time(), time.perf_counter()


def measure_objectives(arguments: DeclipBenchmarkArguments) -> dict[str, tuple[float, float]]:
    """By objective the median seconds of a step, on cores and on the wall."""
    config = merge(read_config(find_config(arguments.config)), arguments.changes)
    of_declip = {part.name for part in fields(ObjectiveArguments)}
    seconds = {}
    for objective in ("contrastive", "declip"):
        run = {name: value for name, value in config.items() if objective == "declip" or name not in of_declip}
        run |= {"objective": objective, "max_steps": arguments.num_steps, "save_strategy": "no"}
        clock = StepClock()
        with tempfile.TemporaryDirectory() as folder:
            train(*build_arguments(PRETRAINING, run | {"output_dir": folder}), callbacks=[clock])
        seconds[objective] = tuple(statistics.median(times[1:]) for times in (clock.on_core, clock.by_clock))
    return seconds


def main(arguments: DeclipBenchmarkArguments) -> None:
    seconds = measure_objectives(arguments)
    print("| objective | core seconds per step | ratio | seconds per step | ratio |\n|---|---:|---:|---:|---:|")
    for objective, times in seconds.items():
        cells = [f"{t:.3f} | {t / first:.2f}" for t, first in zip(times, seconds["contrastive"], strict=True)]
        print(f"| {objective} | {' | '.join(cells)} |")


if __name__ == "__main__":
    run_command(main, DeclipBenchmarkArguments)
