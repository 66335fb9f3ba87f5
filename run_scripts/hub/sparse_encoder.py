# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""What makes a model's folder a SparseEncoder of sentence-transformers as well: its vectors are the code weights."""

import json
import shutil
from pathlib import Path


_MODULE = "sparse_encoder_fdt"
_FILES = {
    "modules.json": [{"idx": 0, "name": "0", "path": "", "type": f"{_MODULE}.FDTCodeWeights"}],
    # The cosine, as in `run_scripts.search`: with the inner product, items with fewer codes would rank higher.
    "config_sentence_transformers.json": {"model_type": "SparseEncoder", "similarity_fn_name": "cosine"},
    "sentence_bert_config.json": {
        "modality_config": {
            modality: {"method": f"get_{modality}_features", "method_output_name": f"{modality}_code_weights"}
            for modality in ("text", "image")
        },
        "module_output_name": "sentence_embedding",
    },
}


def is_two_tower_fdt(folder: str | Path) -> bool:
    """Whether a folder holds a whole [`FDTModel`]: both towers, the codebook, and its own weights, not adapters."""
    path = Path(folder)
    if not (path / "config.json").is_file() or (path / "adapter_config.json").exists():
        return False
    return json.loads((path / "config.json").read_text(encoding="utf-8")).get("architectures") == ["FDTModel"]


def check_two_tower_fdt(folder: str | Path, user: str) -> None:
    """Raise a ValueError for a folder that holds something else than a whole [`FDTModel`], which `user` needs."""
    if not is_two_tower_fdt(folder):
        raise ValueError(f"{user} needs an FDTModel with its own weights, got {folder}")


def write_sparse_encoder(folder: str | Path) -> None:
    """
    Adds the files by which `SparseEncoder(folder, trust_remote_code=True)` loads the model; weights stay where they
    are. `SentenceTransformer(folder, trust_remote_code=True)` still gives the embeddings.

    Args:
        folder: of an [`FDTModel`] and its processor.

    Raises:
        ValueError: the folder holds something else.
    """
    if not is_two_tower_fdt(folder):
        raise ValueError(f"`folder` must hold an FDTModel, got {folder}")
    for name, content in _FILES.items():
        Path(folder, name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    shutil.copy(Path(__file__).with_name("companions") / f"{_MODULE}.py", folder)
