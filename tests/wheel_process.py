"""A day with the installed wheel, run by test_packaging.py in an empty folder, without the repository on the path.

PYTHONPATH=FOLDER_OF_THE_WHEEL:SITE_PACKAGES python -S tests/wheel_process.py CHECKPOINT CONFIG
"""

import json
import runpy
import sys
from pathlib import Path


CHECKPOINT, CONFIG = sys.argv[1:]
MODEL = "outputs/smoke"
CONFIGS = "run_scripts/configs/cc3m_vit_b32.json run_scripts/configs/smoke.json"
SMALLER = '--max_steps 4 --model_config {"codebook_size":128,"codebook_dim":32,"grounding_temperature":100}'


def run(command: str) -> None:
    """What `python -m` does, in this process: importing torch anew for every command would take most of the time."""
    sys.argv = command.split()
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    sys.path[0] = ""  # as `python -m` has it: not the folder of this script
    run("run_scripts.prepare_synthetic_pairs")
    run(f"run_scripts.run_pretraining {CONFIGS} {SMALLER}")

    from datasets import Dataset, DatasetDict
    from PIL import Image

    rows = [{"image": Image.new("RGB", (48, 48), color), "caption": color} for color in ("red", "green", "blue")]
    DatasetDict({"test": Dataset.from_list(rows)}).save_to_disk("drawings")
    run(f"run_scripts.run_evaluation retrieval --model {MODEL} --dataset drawings --output r.json --report r.html")
    run(f"run_scripts.run_visualization --model {MODEL} --dataset drawings --output_dir gallery --figure_codes 0")
    run(f"conversion.convert_fdt_to_hf --checkpoint {CHECKPOINT} --config {CONFIG} --output_dir converted")

    from transformers import AutoProcessor, pipeline

    import conversion
    import modeling_fdt
    import run_scripts

    classify = pipeline("zero-shot-image-classification", model=MODEL)
    answers = classify(Image.new("RGB", (48, 48), "red"), candidate_labels=["a red circle", "a blue square"])
    report = {
        "files": [package.__file__ for package in (conversion, modeling_fdt, run_scripts)],
        "model": type(modeling_fdt.FDTModel.from_pretrained(MODEL)).__name__,
        "processor": type(AutoProcessor.from_pretrained(MODEL)).__name__,
        "labels": sorted(answer["label"] for answer in answers),
    }
    Path("report.json").write_text(json.dumps(report))
