# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""The first run: train a small FDT model, test it on images that it has never seen, show its codes, and use it.

    python -m run_scripts.run_demo
    python -m run_scripts.run_demo --images drawings --styles all

Images are scenes of drawings (`prepare_scenes`), or drawings one by one (`prepare_emoji_data`). Training is
`run_pretraining` with a config of `run_scripts/configs`. Everything is written into the config's `output_dir`: the
model, results.json, loss_curve.png, contact_sheet.png, and in `gallery` pages and figures that show what each code
means (`run_visualization`).
"""

from run_scripts.arguments import run_command
from run_scripts.demo.arguments import DemoArguments


def main(arguments: DemoArguments) -> None:
    from run_scripts.demo.demo import run_demo

    run_demo(arguments)


if __name__ == "__main__":
    run_command(main, DemoArguments)
