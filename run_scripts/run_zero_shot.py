# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Score labels for one picture with a trained model.

python -m run_scripts.run_zero_shot --model outputs/emoji_two_styles --image picture.png --labels "red heart" dog
"""

from dataclasses import dataclass, field

from transformers import HfArgumentParser, pipeline

import modeling_fdt  # noqa: F401  (registers the Auto classes)


@dataclass
class ZeroShotArguments:
    model: str = field(metadata={"help": "Folder or Hub name of a model with its processor."})
    image: str = field(metadata={"help": "Path or URL of a picture."})
    labels: list[str] = field(metadata={"help": "Names to choose from."})
    template: str = field(default="{}", metadata={"help": "What a name is put into, at `{}`."})


def main(arguments: ZeroShotArguments) -> None:
    classifier = pipeline("zero-shot-image-classification", model=arguments.model)
    predictions = classifier(
        arguments.image, candidate_labels=arguments.labels, hypothesis_template=arguments.template
    )
    for prediction in predictions:
        print(f"{prediction['score']:7.1%}  {prediction['label']}")


if __name__ == "__main__":
    main(*HfArgumentParser(ZeroShotArguments, allow_abbrev=False).parse_args_into_dataclasses())
