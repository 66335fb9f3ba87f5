"""Runs what a page of the documentation shows: its Python blocks as printed, one after the other in one namespace.

A page names models and data that its reader has: `write_stand_ins` puts tiny ones where the names point.
"""

import ast
import json
import re
import textwrap
from pathlib import Path

import numpy as np
import peft
from datasets import Dataset, DatasetDict
from PIL import Image

from modeling_fdt import FDTForImageClassification, FDTImageProcessor, FDTModel, FDTProcessor, FDTTokenizer
from tests.conftest import build_tiny_config


MODEL, CLASSIFIER, ADAPTERS = "outputs/scenes_two_styles", "outputs/cats_and_dogs", "outputs/adapters"
VISION, TEXT = "path/to/vision", "path/to/text"
DATA = "data/emoji_two_styles"
# Those of the demo, as pages name their modules.
TOWERS = {
    "vision_config": {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "layer_type": "basic",
    },
    "text_config": {
        "model_type": "electra",
        "vocab_size": 49409,
        "embedding_size": 8,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 40,
        "pad_token_id": 0,
    },
}


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page, at the margin or inside a list."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", page.read_text(encoding="utf-8"), re.M | re.S)
    return [textwrap.dedent(code) for _, code in found]


def write_stand_ins(folder: Path) -> None:
    """Tiny models, an image and data under the names by which pages call them."""
    image_processor = FDTImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = FDTProcessor(image_processor=image_processor, tokenizer=FDTTokenizer())
    model = FDTModel(build_tiny_config(**TOWERS))
    classifier = FDTForImageClassification(build_tiny_config(**TOWERS, id2label={0: "cat", 1: "dog"}))
    for name, saved in ((MODEL, model), (CLASSIFIER, classifier)):
        saved.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    model.vision_tower.save_pretrained(folder / VISION)
    model.text_tower.save_pretrained(folder / TEXT)
    processor.tokenizer.save_pretrained(folder / TEXT)
    lora = peft.LoraConfig(r=2, target_modules=r"(vision|text)_tower\..*(query|value|convolution)")
    peft.get_peft_model(model, lora).save_pretrained(folder / ADAPTERS)
    processor.save_pretrained(folder / ADAPTERS)

    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    for name in ("image.png", f"{MODEL}/unseen_scene.png"):
        image.save(folder / name)
    metric = {"value": 0.5, "chance": 0.1, "unit": "share"}
    results = {"task": "retrieval", "metrics": {"rsum": metric}, "data": [{"source": DATA, "split": "test"}]}
    (folder / MODEL / "results.json").write_text(json.dumps(results))
    rows = {"image": [image] * 2, "caption": ["a red heart", "a dog face"]}
    DatasetDict({split: Dataset.from_dict(rows) for split in ("train", "test")}).save_to_disk(folder / DATA)


def run_page(page: Path) -> list[tuple[str, str]]:
    """Run a page's Python blocks in the working directory.

    Returns:
        What each line of the form `expression  # => answer` promises, and what it gave. An answer may go on in the
        comments below its line.
    """
    namespace, answers = {"__name__": page.stem}, []
    for block in blocks(page, "python"):
        lines, statements = block.splitlines(), ast.parse(block).body
        ends = [statement.lineno - 1 for statement in statements[1:]] + [len(lines)]
        for statement, end in zip(statements, ends, strict=True):
            rest_of_line = lines[statement.end_lineno - 1][statement.end_col_offset :]
            comments = [rest_of_line, *lines[statement.end_lineno : end]]
            promised = "\n".join(comments).partition("# =>")[2]
            if promised:
                promised = re.sub(r"^\s*#(?: =>)?", "", promised, flags=re.M)
                given = eval(compile(ast.Expression(statement.value), page.name, "eval"), namespace)
                answers.append((promised, repr(given)))
            else:
                exec(compile(ast.Module([statement], []), page.name, "exec"), namespace)
    return answers


def form_of(answer: str, is_of_a_stand_in: bool) -> str:
    """An answer without white space; of a stand-in, whose numbers and words mean nothing, only the form."""
    answer = "".join(answer.split())
    return re.sub(r"'[^']*'|-?\d+(?:\.\d*)?(?:e-?\d+)?", "_", answer) if is_of_a_stand_in else answer
