# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Embed any number of images into Parquet, on one machine or on a Ray cluster.

    python -m run_scripts.embed_images --model checkpoints/fdt-scenes --images images --output_dir outputs/embeds
    RAY_ADDRESS=auto python -m run_scripts.embed_images --model MODEL --images s3://bucket/shards --output_dir s3://...

Run it again after it was stopped or when images were added: files that are finished are not read again.
"""

from run_scripts.arguments import run_command
from run_scripts.search.arguments import EmbedArguments


def main(arguments: EmbedArguments) -> None:
    from run_scripts.search.embedding_files import embed_files

    report = embed_files(arguments)
    print(
        f"{arguments.output_dir}: {report.num_images} images of {report.num_files} files embedded now, "
        f"{report.num_broken} rows with a reason instead, {report.num_finished} files were finished before"
    )


if __name__ == "__main__":
    run_command(main, EmbedArguments)
