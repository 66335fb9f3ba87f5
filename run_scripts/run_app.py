# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Look into a trained model: drop an image, type labels, and see which codes decide.

    python -m run_scripts.run_app --model outputs/emoji_two_styles

Opens a page for this machine only (needs `pip install -e ".[app]"`).
"""

from run_scripts.arguments import run_command
from run_scripts.visualization.arguments import AppArguments


def main(arguments: AppArguments) -> None:
    from run_scripts.visualization.app import run_app

    run_app(arguments)


if __name__ == "__main__":
    run_command(main, AppArguments)
