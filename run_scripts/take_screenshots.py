# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Photograph every kind of page - gallery, report, app - in light and dark and on a phone, to look at before a merge.

    python -m run_scripts.take_screenshots --gallery outputs/gallery --report outputs/report.html \
        --model checkpoints/fdt-scenes --image checkpoints/fdt-scenes/scene.png --output_dir outputs/screenshots

Needs what the extra [test] installs, and Debian's packages chromium and chromium-driver. See docs/explanation.md.
"""

from run_scripts.arguments import run_command
from run_scripts.visualization.arguments import ScreenshotArguments


def main(arguments: ScreenshotArguments) -> None:
    from run_scripts.visualization.screenshots import take_screenshots

    take_screenshots(arguments)


if __name__ == "__main__":
    run_command(main, ScreenshotArguments)
