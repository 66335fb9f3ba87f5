# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Fine-tune on your folder

Make an image classifier of a pretrained FDT model and a folder of pictures, one sub-folder for each class. Run
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
# Drawings, by the colour of their shape, stand for your pictures: `pictures/train/red/000.png`,
# `pictures/test/green/003.png`, and so on. What an earlier run left is removed first, since no command writes over a
# model.

folder = Path("outputs/tutorials")
for earlier in ("pictures", "classifier"):
    shutil.rmtree(folder / earlier, ignore_errors=True)
generator = random.Random(2)
for split, num_pictures in (("train", 240), ("test", 60)):
    for number in range(num_pictures):
        picture, caption = draw_pair(generator, 32)
        color = caption.split()[1]
        path = folder / "pictures" / split / color / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)

# ## The run
#
# The same words work as flags of `python -m run_scripts.run_finetuning`, or as names in a JSON file. The classifier
# starts from the zero-shot one: the weight of a class is the embedding of its caption.

flags = {
    "model": folder / "pretrained",
    "task": "classification",
    "dataset": folder / "pictures",
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

# The test split was evaluated before and after; both results are beside the model.

results = json.loads((folder / "classifier" / "results.json").read_text())
print(f"accuracy: {results['before']['eval_accuracy']:.1%} before, {results['after']['eval_accuracy']:.1%} after")

# ## Use
#
# The names of the folders are the names of the classes.

classify = pipeline("image-classification", model=str(folder / "classifier"))
path = next((folder / "pictures" / "test" / "red").iterdir())
for answer in classify(str(path)):
    print(f"{answer['score']:.3f} {answer['label']}")
