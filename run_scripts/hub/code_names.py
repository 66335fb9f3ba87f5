# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Names of codes beside a model, for all that lists its codes to people."""

import json
from pathlib import Path


_MAX_P_VALUE = 0.05


def write_code_names(folder: str | Path, table: str | Path) -> None:
    """
    Writes `code_names.json`: the names that a gallery gives to codes whose strongest images or captions are alike more
    often than chance has it (p at most 0.05). The others stay without a name.

    Args:
        folder: of the model.
        table: `codes.parquet` of `run_scripts.run_visualization`, made with this model.

    Raises:
        ValueError: the file is none of a gallery, or of a codebook of another size.
        OSError: there is no such file.
    """
    import pyarrow.parquet

    columns = ["code", "name", "image_coherence_p_value", "text_coherence_p_value"]
    try:
        rows = pyarrow.parquet.read_table(table, columns=columns).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{table} is no codes.parquet of run_visualization: {error}") from error
    config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    if [row["code"] for row in rows] != list(range(config.get("codebook_size", 0))):
        raise ValueError(
            f"{table} tells of {len(rows)} codes, the model in {folder} has {config.get('codebook_size', 0)}"
        )
    names = {}
    for row in rows:
        p_values = [row[column] for column in columns[2:] if row[column] is not None]
        if row["name"] and p_values and min(p_values) <= _MAX_P_VALUE:
            names[str(row["code"])] = row["name"]
    Path(folder, "code_names.json").write_text(
        json.dumps(names, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )
