# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""What an evaluation found, and the one format in which it is written down."""

import hashlib
import importlib.metadata
import json
import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download

import modeling_fdt
from run_scripts.data.files import format_markdown_table, hash_file
from run_scripts.evaluation.arguments import EvaluationArguments


PACKAGES = ("torch", "transformers", "datasets", "numpy", "scikit-learn")


@dataclass
class Metric:
    """A number and what it is to be compared with.

    Attributes:
        value: what the model reaches.
        chance: what chance would reach; None where that means nothing.
        unit: whether it is a share of 1.
        control: what a trivial method reaches on the same data, or the same model where the thing that is tested is
            taken away; docs/evaluation.md says for each task which. None where there is none.
    """

    value: float
    chance: float | None = None
    unit: Literal["share", "number"] = "share"
    control: float | None = None


@dataclass
class Chart:
    """Points (x, y) by series. In a bar chart x is a name; shares are drawn in per cent."""

    title: str
    kind: Literal["line", "bar"]
    series: dict[str, list[tuple[float | str, float]]]
    x_label: str = ""
    y_label: str = ""
    unit: Literal["share", "number"] = "share"
    log_x: bool = False


@dataclass
class Evaluation:
    """The outcome of one task.

    Attributes:
        metrics: by name, in the order in which they are shown.
        headline: name of the metric that is cited for this data set.
        data: what was evaluated: one entry for each split, as `describe_data` gives it.
        counts: numbers of things, by name.
        charts: what the report draws.
    """

    metrics: dict[str, Metric]
    headline: str
    data: list[dict[str, str | int]]
    counts: dict[str, int] = field(default_factory=dict)
    charts: list[Chart] = field(default_factory=list)

    def __post_init__(self):
        if self.headline not in self.metrics:
            raise ValueError(f"metric={self.headline!r} was not measured; there are {list(self.metrics)}")


def build_record(
    task: str, arguments: EvaluationArguments, evaluation: Evaluation, command: str, device: str
) -> dict[str, Any]:
    """A run as JSON: what was found, and all that is needed to find it again."""
    return {
        "task": task,
        "headline": evaluation.headline,
        "metrics": {name: asdict(metric) for name, metric in evaluation.metrics.items()},
        "counts": evaluation.counts,
        "model": {"name": arguments.model, "sha256": hash_weights(arguments.model)},
        "data": evaluation.data,
        "seed": arguments.seed,
        "command": command,
        "arguments": asdict(arguments),
        "commit": find_commit(),
        "versions": list_versions(),
        "device": device,
        "charts": [asdict(chart) for chart in evaluation.charts],
    }


def hash_weights(name_or_path: str) -> str:
    """SHA-256 of a checkpoint's safetensors file; of several, that of their own hashes in the order of their names.

    Raises:
        ValueError: the checkpoint has no safetensors file.
    """
    folder = Path(name_or_path)
    if not folder.is_dir():
        folder = Path(snapshot_download(name_or_path, allow_patterns="*.safetensors"))
    hashes = [hash_file(path) for path in sorted(folder.glob("*.safetensors"))]
    if not hashes:
        raise ValueError(f"model={name_or_path!r} has no safetensors file")
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def list_versions() -> dict[str, str]:
    """The releases of all that takes part in a result, by name."""
    return {
        "python": platform.python_version(),
        "fdt-transformers": modeling_fdt.__version__,
        **{package: importlib.metadata.version(package) for package in PACKAGES},
    }


def find_commit() -> str | None:
    """The commit of the checkout that this code is in, with `-dirty` where files differ from it; None outside one."""
    root = Path(__file__).parents[2]
    if shutil.which("git") is None or not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def describe_device(device: str | torch.device) -> str:
    """The kind of a device, in words."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device}, {torch.get_num_threads()} threads"


def write_record(record: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def read_record(path: str | Path) -> dict[str, Any]:
    """What `write_record` wrote.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    needed = {"task", "headline", "metrics", "counts", "model", "data", "seed", "command", "commit", "versions"}
    needed |= {"device", "charts"}
    missing = sorted(needed - set(record if isinstance(record, dict) else ()))
    if missing:
        raise ValueError(f"{path} holds no results of run_evaluation: it lacks {missing}")
    return record


def format_value(value: float, unit: str, num_digits: int = 1) -> str:
    """A share in per cent, a number with as many digits."""
    return f"{value:.{num_digits}%}" if unit == "share" else f"{value:.{num_digits}f}"


def format_table(title: str, metrics: dict[str, dict[str, Any]], headline: str | None = None) -> str:
    """Metrics as a Markdown table, the headline in bold; without a column for controls where there are none.

    Args:
        title: of the first column.
        metrics: by name, each with the fields of `Metric`.
        headline: name of one of them.
    """
    comparisons = [name for name in ("chance", "control") if name == "chance" or has_any(metrics, name)]
    rows = []
    for name, metric in metrics.items():
        value = format_value(metric["value"], metric["unit"])
        cells = [
            "" if metric.get(field) is None else format_value(metric[field], metric["unit"], digits)
            for field, digits in zip(comparisons, (2, 1), strict=False)
        ]
        if name == headline:
            name, value = f"**{name}**", f"**{value}**"
        rows.append([name, value, *cells])
    return format_markdown_table([title, "value", *comparisons], rows)


def has_any(metrics: dict[str, dict[str, Any]], name: str) -> bool:
    """Whether any of the metrics has a field that is not None."""
    return any(metric.get(name) is not None for metric in metrics.values())


def format_markdown(record: dict[str, Any]) -> str:
    """The metrics of a run as a Markdown table, the headline in bold."""
    data = record["data"][0]
    title = f"{record['task']}: {data['source']}, {data['split']}, {data['rows']:,} rows"
    return format_table(title, record["metrics"], record["headline"])
