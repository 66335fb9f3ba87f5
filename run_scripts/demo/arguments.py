# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Arguments of the demo; light, so that help and refusals come at once."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class DemoArguments:
    images: Literal["scenes", "drawings"] = field(
        default="scenes", metadata={"help": "Several things in an image, or one drawing."}
    )
    styles: Literal["two", "all"] = field(
        default="two", metadata={"help": "`two` needs pip only; `all`, for drawings, needs npm."}
    )
    smoke: bool = field(default=False, metadata={"help": "A few steps, to see that all parts run."})

    def __post_init__(self):
        if self.images == "scenes" and self.styles != "two":
            raise ValueError(f"styles={self.styles!r} is for images='drawings', got images={self.images!r}")
