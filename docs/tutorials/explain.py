# Copyright 2026 The FDT for transformers authors. Licensed under the Apache License, Version 2.0.
"""Explain

What the codes of a model see in an image, which words they respond to, and what each adds to a logit. Run
`pretrain.py` first; it leaves the model that this tutorial explains.

    python docs/tutorials/explain.py
"""

import random
import shutil
from pathlib import Path

import torch
from datasets import Dataset, DatasetDict

from modeling_fdt import FDTModel, FDTProcessor
from run_scripts.prepare_synthetic_pairs import draw_pair
from run_scripts.visualization.arguments import VisualizationArguments
from run_scripts.visualization.collection import visualize


folder = Path("outputs/tutorials")
model, processor = FDTModel.from_pretrained(folder / "pretrained"), FDTProcessor.from_pretrained(folder / "pretrained")

# ## One image and one caption
#
# `explain` returns the strongest codes of each, where they score high, and what they add to the logit.

generator = random.Random(3)
image, caption = draw_pair(generator, 32)
inputs = processor(images=image, text=caption, return_tensors="pt")
explanation = model.explain(**inputs, top_k=4)
print(f"logit of the drawing and {caption!r}: {explanation.logits_per_image.item():.2f}")
for code, weight, part in zip(
    explanation.image_codes[0], explanation.image_weights[0], explanation.image_contributions[0, 0], strict=True
):
    print(f"code {code:3d} has weight {weight:.3f} in the image and adds {part:.3f} to the logit")

# With `top_k=None` all active codes are returned. What they add sums to the whole logit.

everything = model.explain(**inputs, top_k=None)
difference = everything.image_contributions.sum(dim=-1) - everything.logits_per_image
print(f"all {everything.image_codes.shape[1]} active codes miss the logit by {difference.abs().item():.1e}")

# The processor lays scores over the original image, and merges tokens into words.

(maps,) = processor.post_process_image_explanation(explanation, target_sizes=[(image.height, image.width)])
print("heat maps:", tuple(maps["heat_maps"].shape), "box of the best patch:", maps["boxes"][0].tolist())
(words,) = processor.post_process_text_explanation(explanation, caption)
for code, winner in zip(words["codes"].tolist(), words["winners"], strict=True):
    print(f"code {code:3d} responds to", "no word" if winner is None else repr(words["words"][winner]))

# ## A whole data set
#
# The gallery shows each code with its strongest images and captions, as web pages that need no server. On the
# command line this is `python -m run_scripts.run_visualization`.

drawings, captions = zip(*(draw_pair(generator, 32) for _ in range(64)), strict=True)
dataset = Dataset.from_dict({"image": list(drawings), "caption": list(captions)})
for earlier in ("drawings", "gallery"):
    shutil.rmtree(folder / earlier, ignore_errors=True)
DatasetDict(test=dataset).save_to_disk(folder / "drawings")
torch.manual_seed(0)
visualize(
    VisualizationArguments(
        model=str(folder / "pretrained"),
        dataset=str(folder / "drawings"),
        output_dir=str(folder / "gallery"),
        num_examples=4,
        max_pages=16,
        num_draws=100,
    )
)
print(f"open {folder / 'gallery' / 'index.html'} in a browser")
