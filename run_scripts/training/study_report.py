# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""What a study found: Markdown tables of means, spreads and paired differences, and a plot."""

import statistics
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from run_scripts.data.files import format_markdown_table
from run_scripts.evaluation.results import format_value
from run_scripts.training.arguments import StudyArguments


Results = dict[str, list[dict[str, Any]]]  # by variant, one for each trial or seed


def read_values(results: list[dict[str, Any]], title: str, metric: str) -> tuple[list[float], dict[str, Any]] | None:
    """A metric's value for every seed, and one of its entries; None where a seed has no such value."""
    found = [result["evaluations"].get(title, {"metrics": {}})["metrics"].get(metric) for result in results]
    return None if None in found else ([entry["value"] for entry in found], found[0])


def format_spread(values: list[float], unit: str) -> str:
    """Mean and sample standard deviation; a single value has none."""
    scale = 100 if unit == "share" else 1
    mean = f"{scale * statistics.mean(values):.1f}"
    return f"{mean} ± {scale * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def format_evaluation(finals: Results, title: str, columns: dict[str, str], reference: str | None = None) -> str:
    """A Markdown table with a row for each variant: mean ± standard deviation over the seeds, shares in per cent.

    Args:
        finals: by variant, one result for each seed, in the same order.
        title: of the evaluation.
        columns: metrics by heading.
        reference: a variant; where it is given the table shows the differences from it, seed by seed.
    """
    rows, chances = [], {}
    for variant, results in finals.items():
        if variant == reference or not all(title in result["evaluations"] for result in results):
            continue
        cells = []
        for heading, metric in columns.items():
            found = read_values(results, title, metric)
            others = found if reference is None else read_values(finals[reference], title, metric)
            if found is None or others is None:
                cells.append("")
                continue
            values, entry = found
            if entry["chance"] is not None:
                chances[heading] = format_value(entry["chance"], entry["unit"], 2)
            if reference is not None:
                values = [value - other for value, other in zip(values, others[0], strict=True)]
            cells.append(format_spread(values, entry["unit"]))
        rows.append([variant, *cells])
    if chances and reference is None:
        rows.append(["*chance*", *(chances.get(heading, "") for heading in columns)])
    return format_markdown_table(["variant", *columns], rows)


def format_costs(finals: Results) -> str:
    """A Markdown table of parameters and time, each also as a ratio to the first variant's."""
    costs = {
        variant: (results[0]["num_parameters"], statistics.median(r["cpu_seconds_per_step"] for r in results))
        for variant, results in finals.items()
    }
    first_parameters, first_seconds = next(iter(costs.values()))
    rows = [
        [
            variant,
            *(f"{parameters:,}", f"{parameters / first_parameters:.2f}"),
            *(f"{seconds:.3f}", f"{seconds / first_seconds:.2f}"),
        ]
        for variant, (parameters, seconds) in costs.items()
    ]
    return format_markdown_table(["variant", "parameters", "ratio", "CPU seconds per step", "ratio"], rows)


def format_curves(finals: Results) -> str:
    """A Markdown table of the mean rsum on validation while training: flat curves end where they nearly were."""
    steps = [step for step, _ in next(iter(finals.values()))[0]["validation"]]
    rows = []
    for variant, results in finals.items():
        curves = zip(*([value for _, value in result["validation"]] for result in results), strict=True)
        rows.append([variant, *(f"{statistics.mean(values):.1f}" for values in curves)])
    return format_markdown_table(["variant", *(f"step {step:,}" for step in steps)], rows)


def format_trials(trials: Results, variants: dict[str, dict]) -> str:
    """A Markdown table of all trials, the best of each variant in bold."""
    rows = []
    for variant, results in trials.items():
        scores = [result["validation"][-1][1] for result in results]
        for result, value in zip(results, scores, strict=True):
            tried = dict(variants[variant]["trials"][result["trial"]])
            tried = {**tried.pop("model_config", {}), **tried}
            shown = f"**{value:.1f}**" if scores.index(max(scores)) == result["trial"] else f"{value:.1f}"
            rows.append([variant, ", ".join(f"{k} {v}" for k, v in tried.items()), shown])
    return format_markdown_table(["variant", "trial", "rsum on validation"], rows, num_left=2)


def plot_study(finals: Results, evaluations: dict[str, dict], path: Path) -> None:
    """The first column of every evaluation by variant, the mean as a bar and every seed as a dot, as PNG."""
    variants = list(finals)[::-1]
    size = (4.5 * len(evaluations), 0.4 * len(variants) + 1.4)
    figure, panels = plt.subplots(1, len(evaluations), figsize=size, sharey=True, layout="constrained", squeeze=False)
    for axes, (title, evaluation) in zip(panels[0], evaluations.items(), strict=True):
        heading, metric = next(iter(evaluation["columns"].items()))
        for row, variant in enumerate(variants):
            found = read_values(finals[variant], title, metric)
            if found is None:
                continue
            values, entry = found
            scale = 100 if entry["unit"] == "share" else 1
            is_fdt = finals[variant][0]["config"]["model_config"].get("model_type", "fdt") == "fdt"
            color = "tab:blue" if is_fdt else "tab:gray"
            axes.barh(row, scale * statistics.mean(values), color=color, alpha=0.4)
            axes.plot([scale * value for value in values], [row] * len(values), "o", color="black", markersize=3)
            if entry["chance"] is not None:
                axes.axvline(scale * entry["chance"], color="black", linestyle=":", linewidth=1)
        axes.set_yticks(range(len(variants)), variants)
        axes.set(title=title, xlabel=f"{heading}, dotted: chance")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def write_study_report(arguments: StudyArguments, trials: Results, finals: Results) -> str:
    """Write results.md and study.png into the study's folder, and return the text.

    Args:
        arguments: the study.
        trials: the results of the trials of every variant.
        finals: by variant, those of its best trial with every seed that has been run for it.
    """
    first = next(iter(finals))
    num_seeds = min(len(results) for results in finals.values())
    finals = {variant: results[:num_seeds] for variant, results in finals.items()}
    parts = [f"Seeds {arguments.seeds[:num_seeds]}; mean ± sample standard deviation, shares in per cent."]
    for title, evaluation in arguments.evaluations.items():
        parts += [f"## {title}", format_evaluation(finals, title, evaluation["columns"])]
        if num_seeds > 1 and read_values(finals[first], title, next(iter(evaluation["columns"].values()))):
            differences = format_evaluation(finals, title, evaluation["columns"], reference=first)
            parts += [f"Difference from {first}, seed by seed:", differences]
    parts += ["## While training: rsum on validation", format_curves(finals), "## Cost", format_costs(finals)]
    parts += ["## Trials", format_trials(trials, arguments.variants)]
    text = "\n\n".join(parts) + "\n"
    folder = Path(arguments.output_dir)
    (folder / "results.md").write_text(text, encoding="utf-8")
    plot_study(finals, arguments.evaluations, folder / "study.png")
    return text
