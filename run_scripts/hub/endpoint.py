# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""What makes a model's folder one that Hugging Face Inference Endpoints can serve with codes and explanations."""

import importlib.metadata
import shutil
from pathlib import Path

from packaging.requirements import Requirement

from run_scripts.hub.sparse_encoder import check_two_tower_fdt


def write_endpoint(folder: str | Path) -> None:
    """
    Adds `handler.py` and `requirements.txt`, which an endpoint installs.

    Args:
        folder: of an [`FDTModel`] and its processor.

    Raises:
        ValueError: the folder holds something else.
    """
    check_two_tower_fdt(folder, "an endpoint")
    shutil.copy(Path(__file__).with_name("companions") / "handler.py", folder)
    Path(folder, "requirements.txt").write_text("\n".join(list_requirements()) + "\n", encoding="utf-8")


def list_requirements(extra: str = "") -> list[str]:
    """This package's own requirements as setup.cfg declares them, with those of one extra; none twice."""
    requirements = [Requirement(text) for text in importlib.metadata.requires("fdt-transformers") or []]
    chosen = [item for item in requirements if item.marker is None or item.marker.evaluate({"extra": extra})]
    return sorted({f"{item.name}{item.specifier}" for item in chosen})
