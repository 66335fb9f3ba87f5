# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Show what the codes of a trained model mean, as a gallery of web pages, figures and a table.

    python -m run_scripts.run_visualization --model outputs/emoji_two_styles --dataset data/emoji_two_styles \
        --split test --output_dir outputs/gallery

One pass over the data, in memory that does not grow with them, keeps what each code is strongest in.
Then `output_dir` holds index.html (open it in a browser; it needs no server and no network), pages of codes and
images, codes.parquet, and figures/*.png. See docs/explanation.md.
"""

from run_scripts.arguments import run_command
from run_scripts.visualization.arguments import VisualizationArguments


def main(arguments: VisualizationArguments) -> None:
    from run_scripts.visualization.collection import visualize

    visualize(arguments)


if __name__ == "__main__":
    run_command(main, VisualizationArguments)
