# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Embed a folder of images into an index that `search_images` searches.

    python -m run_scripts.index_images --model outputs/emoji_two_styles --images images --index outputs/index

Run it again when images were added, changed or removed, or when it was stopped: what is committed is not embedded
again. An image that several files hold is embedded once.
"""

from run_scripts.arguments import run_command
from run_scripts.search.arguments import IndexArguments


def main(arguments: IndexArguments) -> None:
    from run_scripts.evaluation.embedding import load_model
    from run_scripts.search.indexing import index_images

    model, processor = load_model(arguments.model, arguments.device)
    report = index_images(model, processor, arguments)
    print(
        f"{arguments.index} holds {report.num_images} images of {report.num_files} files: "
        f"{report.num_embedded} embedded now, {report.num_removed} removed, "
        f"{len(report.unreadable)} files left out as unreadable"
    )
    if arguments.copy_to is not None:
        print(f"{arguments.copy_to}: {report.num_written} images written, {report.num_deleted} deleted")


if __name__ == "__main__":
    run_command(main, IndexArguments)
