# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Convert a transformers folder back into a checkpoint and a configuration that the original implementation reads.

    python -m conversion.convert_hf_to_fdt --model OUT --output_dir ORIGINAL

Tensors that FDT's outputs do not use (see `key_map.DROPPED`) are not in a transformers folder and not written; the
original's loader names them as missing and goes on. With `--declip_heads` the heads and the queue of DeCLIP's
objective are written, too, and the configuration is one of DECLIP+FDT.
"""

import json
import logging
from dataclasses import dataclass, field

import yaml

from .command_line import new_folder, reported_as, run
from .original_config import LARGEST_STEP, SwinDims, parse_original_config
from .strict_config import shown


logger = logging.getLogger(__name__)


@dataclass
class BackConversionArguments:
    """Arguments of `convert_hf_to_fdt`."""

    model: str = field(metadata={"help": "A transformers folder, or a name on the Hub: an FDTModel or a CLIPModel."})
    output_dir: str = field(
        metadata={
            "help": "Where to write ckpt.pth.tar and config.json (Swin also swin_config.yaml); a new or empty folder."
        }
    )
    declip_heads: str | None = field(
        default=None, metadata={"help": "declip.safetensors of a checkpoint that was trained with DeCLIP's objective."}
    )
    last_iter: int = field(default=0, metadata={"help": "The training step to record."})
    verify: bool = field(
        default=True, metadata={"help": "Compare with an independent forward pass of the written tensors."}
    )


def convert_hf_to_fdt(arguments: BackConversionArguments) -> None:
    """
    Loads, converts, writes and verifies; `output_dir` appears only if all of it succeeds.

    Raises:
        ValueError: the model cannot be expressed in the original's terms, or verification fails.
        OSError: a file cannot be read or written.
    """
    if not 0 <= arguments.last_iter <= LARGEST_STEP:
        raise ValueError(f"`last_iter` must be from 0 to {LARGEST_STEP}, got {shown(arguments.last_iter)}")
    with new_folder(arguments.output_dir) as folder:
        # Imported here, since torch and transformers take seconds: help and most refusals come at once.
        from .declip import as_declip, original_declip_tensors
        from .original_checkpoint import read_original_checkpoint, write_original_checkpoint
        from .to_original import original_config_of, original_tensors
        from .verify import verify
        from .weights import load_checked_model

        model = load_checked_model(arguments.model, ("fdt", "clip"))
        raw, swin = original_config_of(model)
        heads = {}
        if arguments.declip_heads is not None:
            heads = original_declip_tensors(arguments.declip_heads, model.config)
            raw = as_declip(raw, heads)
        config = parse_original_config(raw, swin)
        with reported_as(f"{arguments.output_dir}: cannot be written"):
            tensors = original_tensors(model, config) | heads
            write_original_checkpoint(folder / "ckpt.pth.tar", tensors, arguments.last_iter)
        (folder / "config.json").write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
        if isinstance(config.vision, SwinDims):
            (folder / "swin_config.yaml").write_text(yaml.safe_dump(swin, sort_keys=False), encoding="utf-8")
        if arguments.verify:
            differences = verify(arguments.model, read_original_checkpoint(folder / "ckpt.pth.tar"), config)
            logger.info("verified; largest relative differences: %s", {k: f"{v:.1g}" for k, v in differences.items()})
    logger.info("wrote %s", arguments.output_dir)


if __name__ == "__main__":
    run(convert_hf_to_fdt, BackConversionArguments)
