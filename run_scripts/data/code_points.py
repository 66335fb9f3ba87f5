# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Emoji as sequences of code points."""


def concept_id(code_points: str) -> str:
    """One spelling for a code-point sequence: upper case, without leading zeros and variation selectors."""
    return "-".join(code.lstrip("0") for code in code_points.upper().split("-") if code != "FE0F")
