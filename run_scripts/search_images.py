# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Search an index of images by words or by an image.

    python -m run_scripts.search_images --index outputs/index --text "a red heart" --grid outputs/hearts.png
    python -m run_scripts.search_images --index outputs/index --image image.png --by codes --top_k 5

`run_scripts.index_images` makes the index.
"""

from run_scripts.arguments import run_command
from run_scripts.search.arguments import SearchArguments


def main(arguments: SearchArguments) -> None:
    from run_scripts.search.searching import search_images

    search_images(arguments)


if __name__ == "__main__":
    run_command(main, SearchArguments)
