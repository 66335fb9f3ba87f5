# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""How many scenes of training one core makes in a second: pixels and caption, as the collator takes them.

    python -m run_scripts.benchmarks.benchmark_scenes --scenes data/scenes

The first scenes are slower: every drawing is recoloured and scaled when it is first needed, and kept.
"""

import time
from dataclasses import dataclass, field

from run_scripts.arguments import run_command
from run_scripts.data.scenes import SceneDataset


@dataclass
class SceneBenchmarkArguments:
    scenes: str = field(metadata={"help": "What `prepare_scenes` has written."})
    num_scenes: int = field(default=5000, metadata={"help": "Scenes to time, in each of num_repeats rounds."})
    num_repeats: int = field(default=4, metadata={"help": "Rounds, one after the other."})


def measure(arguments: SceneBenchmarkArguments) -> list[tuple[float, float]]:
    """Scenes per second of each round: by the time that this process had a core, and by the clock."""
    dataset = SceneDataset(arguments.scenes)
    rates = []
    for number in range(arguments.num_repeats):
        on_core, by_clock = time.process_time(), time.perf_counter()
        for index in range(number * arguments.num_scenes, (number + 1) * arguments.num_scenes):
            dataset[index]
        on_core, by_clock = time.process_time() - on_core, time.perf_counter() - by_clock
        rates.append((arguments.num_scenes / on_core, arguments.num_scenes / by_clock))
    return rates


def main(arguments: SceneBenchmarkArguments) -> None:
    print("| scenes | per second of a core | per second by the clock |\n|---|---|---|")
    for number, (on_core, by_clock) in enumerate(measure(arguments)):
        first, last = (round_number * arguments.num_scenes for round_number in (number, number + 1))
        print(f"| {first:,} to {last:,} | {on_core:,.0f} | {by_clock:,.0f} |")


if __name__ == "__main__":
    run_command(main, SceneBenchmarkArguments)
