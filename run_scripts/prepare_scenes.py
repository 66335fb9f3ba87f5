# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Build a world of scenes: several drawings in each image, captions, and the truth about what is where.

    python -m run_scripts.prepare_scenes --output_dir data/scenes
    python -m run_scripts.prepare_scenes --output_dir data/scenes_all_styles --styles all

Training scenes are made on the fly, without an end, from what this writes: `run_scripts.data.scenes.SceneDataset`.
Written once are the splits to evaluate on (`load_from_disk(output_dir)`) and, in `false_captions`, pairs of a true and
a false caption. README.md in `output_dir` tells what is in each of them.
"""

from dataclasses import dataclass, field
from typing import Literal

from run_scripts.arguments import run_command


@dataclass
class SceneArguments:
    output_dir: str = field(metadata={"help": "Folder to write to; it must not exist yet."})
    styles: Literal["two", "all", "permissive"] = field(
        default="two",
        metadata={"help": "`two` needs pip only, the others npm; `permissive` is `all` without share-alike licences."},
    )
    image_size: int = field(default=64, metadata={"help": "Side of the images in pixels."})
    num_scenes: int = field(default=1000, metadata={"help": "Scenes in each split to evaluate on."})
    num_false_captions: int = field(default=400, metadata={"help": "False captions of each kind."})
    seed: int = field(default=0, metadata={"help": "Draws what is held out, and the scenes of the splits."})

    def __post_init__(self):
        for name in ("num_scenes", "num_false_captions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def main(arguments: SceneArguments) -> None:
    from run_scripts.data.scene_splits import write_scenes

    write_scenes(
        arguments.output_dir,
        arguments.styles,
        arguments.image_size,
        arguments.num_scenes,
        arguments.num_false_captions,
        arguments.seed,
    )


if __name__ == "__main__":
    run_command(main, SceneArguments)
