# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Fine-tune on your folder

Make an image classifier from a pretrained FDT model and a folder of images, one subfolder for each class. Run
`pretrain.py` first; it leaves the model that this tutorial starts from.

    python docs/tutorials/finetune_on_your_folder.py
"""

import json
import random
import shutil
from pathlib import Path

from transformers import pipeline

from run_scripts.arguments import parse_arguments
from run_scripts.prepare_synthetic_pairs import draw_pair
from run_scripts.training.arguments import FINE_TUNING
from run_scripts.training.finetuning import finetune


# ## Your folder
#
# Drawings, sorted by the colour of their shape, stand in for your images: `images/train/red/000.png`,
# `images/test/green/003.png`, and so on. What an earlier run left is removed first: fine-tuning does not write into
# a folder that holds something.

folder = Path("outputs/tutorials")
for earlier in ("images", "classifier"):
    shutil.rmtree(folder / earlier, ignore_errors=True)
generator = random.Random(2)
for split, num_images in (("train", 240), ("test", 60)):
    for number in range(num_images):
        image, caption = draw_pair(generator, 32)
        color = caption.split()[1]
        path = folder / "images" / split / color / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)

# ## The run
#
# The same names work as flags of `python -m run_scripts.run_finetuning`, or as names in a JSON file. The classifier
# starts from the zero-shot one: the weight of a class is the embedding of its caption.

flags = {
    "model": folder / "pretrained",
    "task": "classification",
    "dataset": folder / "images",
    "validation_split": "test",
    "zero_shot_template": "a {} shape",
    "output_dir": folder / "classifier",
    "learning_rate": 1e-3,
    "num_train_epochs": 8,
    "per_device_train_batch_size": 40,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
}
words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
finetune(*parse_arguments(FINE_TUNING, words))

# The test split is evaluated before and after training; both results are beside the model.

results = json.loads((folder / "classifier" / "results.json").read_text())
print(f"accuracy: {results['before']['eval_accuracy']:.1%} before, {results['after']['eval_accuracy']:.1%} after")

# ## Use
#
# The names of the folders are the names of the classes.

classify = pipeline("image-classification", model=str(folder / "classifier"))
path = next((folder / "images" / "test" / "red").iterdir())
for answer in classify(str(path)):
    print(f"{answer['score']:.3f} {answer['label']}")
