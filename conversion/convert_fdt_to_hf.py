# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Convert a checkpoint of the original FDT implementation into a transformers folder that computes the same.

    python -m conversion.convert_fdt_to_hf --checkpoint ckpt.pth.tar --config config.json --output_dir OUT

CLIP+FDT and DECLIP+FDT become an FDTModel, the CLIP baseline becomes transformers' CLIPModel. What DECLIP+FDT trains
beside its model is written to `declip.safetensors`, from which `run_pretraining --objective declip` can go on.
"""

import hashlib
import logging
from dataclasses import dataclass, field
from pathlib import Path

from .command_line import new_folder, reported_as, run
from .original_config import read_original_config


logger = logging.getLogger(__name__)


@dataclass
class ConversionArguments:
    """Arguments of `convert_fdt_to_hf`."""

    checkpoint: str = field(metadata={"help": "The original checkpoint, ckpt_*.pth.tar."})
    config: str = field(metadata={"help": "The run's configuration, config.json or YAML."})
    output_dir: str = field(metadata={"help": "Where to write; a new or empty folder."})
    swin_config: str | None = field(
        default=None,
        metadata={
            "help": "Swin's dimensions, if they differ from the original's swinv2_base_patch4_window7_224.yaml."
        },
    )
    verify: bool = field(
        default=True, metadata={"help": "Compare with an independent forward pass of the checkpoint's tensors."}
    )


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def convert_fdt_to_hf(arguments: ConversionArguments) -> None:
    """
    Reads, converts, writes and verifies; `output_dir` appears only if all of it succeeds.

    Raises:
        ValueError: the input is refused, or verification fails.
        OSError: a file cannot be read or written.
    """
    config = read_original_config(arguments.config, arguments.swin_config)
    with new_folder(arguments.output_dir) as folder:
        # Imported here, since torch and transformers take seconds: help and most refusals come at once.
        from .original_checkpoint import read_original_checkpoint

        checkpoint = read_original_checkpoint(arguments.checkpoint)

        from safetensors.torch import save_file

        from modeling_fdt.model_card import write_model_card

        from .declip import DECLIP_NAME, declip_state
        from .model_card import describe_conversion
        from .to_transformers import build_processor, convert
        from .verify import verify

        model = convert(checkpoint, config)
        with reported_as(f"{arguments.output_dir}: cannot be written"):
            model.save_pretrained(folder)
            build_processor(config).save_pretrained(folder)
        del model
        state = declip_state(checkpoint.tensors, config)
        if state:
            save_file(state, folder / DECLIP_NAME)
            logger.info("heads and queue of training are in %s", DECLIP_NAME)
        differences = verify(folder, checkpoint, config) if arguments.verify else None
        if differences:
            logger.info("verified; largest relative differences: %s", {k: f"{v:.1g}" for k, v in differences.items()})
        write_model_card(
            folder,
            title=f"{config.model_type}, converted from the original implementation",
            license="apache-2.0",
            origin=describe_conversion(
                config,
                name=Path(arguments.checkpoint).name,
                sha256=_sha256(arguments.checkpoint),
                last_iter=checkpoint.last_iter,
                differences=differences,
            ),
        )
    logger.info("wrote %s", arguments.output_dir)


if __name__ == "__main__":
    run(convert_fdt_to_hf, ConversionArguments)
