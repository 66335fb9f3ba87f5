# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Arguments of the gallery and of the app; light, so that help and refusals come at once."""

from dataclasses import dataclass, field

from run_scripts.arguments import CheckpointArguments, PairArguments


@dataclass(kw_only=True)
class VisualizationArguments(CheckpointArguments, PairArguments):
    """What is shown of a model, and of which data."""

    output_dir: str = field(metadata={"help": "New or empty folder for the gallery."})
    category_column: str | None = field(
        default=None,
        metadata={"help": "Column of categories, by which coherence is measured. Without it: by words of captions."},
    )
    streaming: bool = field(default=False, metadata={"help": "Read rows as they are needed, without a download."})
    max_rows: int | None = field(default=None, metadata={"help": "Stop after this many rows."})
    batch_size: int = field(default=64, metadata={"help": "Rows in a forward pass."})
    num_examples: int = field(default=8, metadata={"help": "Images and captions shown for each code."})
    max_pages: int = field(default=2048, metadata={"help": "Codes with a page, those that fire most."})
    thumbnail_size: int = field(default=96, metadata={"help": "Longest side of images in the gallery, in pixels."})
    figure_codes: list[int] | None = field(
        default=None, metadata={"help": "Codes in the figures; without it the twelve most coherent."}
    )
    num_draws: int = field(default=1000, metadata={"help": "Random draws that a code's coherence is compared with."})
    seed: int = field(default=42, metadata={"help": "Of the random draws."})

    def __post_init__(self):
        for name in ("max_rows", "batch_size", "num_examples", "max_pages", "thumbnail_size", "num_draws"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass(kw_only=True)
class AppArguments(CheckpointArguments):
    """Which model the page shows, and where."""

    port: int = field(default=7860, metadata={"help": "Port of the page, on this machine only."})


@dataclass(kw_only=True)
class ScreenshotArguments:
    """Which pages are photographed, and where the photographs go."""

    gallery: str = field(metadata={"help": "Folder of run_visualization."})
    output_dir: str = field(metadata={"help": "Folder for the PNGs, named by view and page; older ones are replaced."})
    report: str | None = field(default=None, metadata={"help": "HTML page of run_evaluation."})
    model: str | None = field(default=None, metadata={"help": "Checkpoint to photograph run_app with, on `image`."})
    image: str | None = field(default=None, metadata={"help": "Image that the app explains."})
    labels: str = field(
        default="a burger, a tiger, a guitar, a cow", metadata={"help": "Labels that the app compares it with."}
    )
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, ...; default: cuda where there is one."})

    def __post_init__(self):
        if (self.model is None) != (self.image is None):
            raise ValueError(f"give model and image together, got model={self.model!r}, image={self.image!r}")
