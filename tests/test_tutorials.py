"""The tutorials run, offline and one after the other in one empty folder, and do what they say."""

import json
import runpy
from pathlib import Path

import pytest

from modeling_fdt import FDTForImageClassification, FDTModel
from run_scripts.prepare_synthetic_pairs import COLORS


TUTORIALS = Path(__file__).parents[1] / "docs" / "tutorials"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tutorials")


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """Runs a tutorial as `python docs/tutorials/NAME.py` does; returns its variables and what it printed."""

    def run_tutorial(name: str) -> tuple[dict, str]:
        monkeypatch.chdir(folder)
        variables = runpy.run_path(str(TUTORIALS / f"{name}.py"), run_name="__main__")
        return variables, capsys.readouterr().out

    return run_tutorial


@pytest.fixture(scope="module")
def pretrained(folder) -> dict:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return runpy.run_path(str(TUTORIALS / "pretrain.py"), run_name="__main__")


def test_every_tutorial_is_tested_and_shown():
    names = {path.stem for path in TUTORIALS.glob("*.py")}
    assert names == {"quick_start", "pretrain", "finetune_on_your_folder", "explain", "convert_and_verify"}
    navigation = (TUTORIALS.parents[1] / "mkdocs.yml").read_text(encoding="utf-8")
    assert all(f"tutorials/{name}.md" in navigation for name in names)


def test_quick_start(run):
    variables, printed = run("quick_start")
    assert "and sum to 1.000" in printed
    # The embedding by hand differs by float32 rounding only.
    assert (variables["embedding"] - variables["outputs"].image_embeds[0]).abs().max() < 1e-6
    assert 0 < len(variables["active"]) < 64
    assert printed.splitlines()[-1].endswith(("a red square", "a photo of a cat"))


def test_pretrain(pretrained):
    # Chance is 1 in 168 captions.
    assert pretrained["share"] > 0.1


def test_finetune_on_your_folder(pretrained, run, folder):
    variables, printed = run("finetune_on_your_folder")
    results = json.loads((folder / "outputs/tutorials/classifier/results.json").read_text())
    assert results["after"]["eval_accuracy"] > 0.5  # chance is 1 in 8 colours
    model = FDTForImageClassification.from_pretrained(folder / "outputs/tutorials/classifier")
    assert set(model.config.id2label.values()) == set(COLORS)
    assert {answer["label"] for answer in variables["classify"](str(variables["path"]))} <= {*model.config.label2id}


def test_explain(pretrained, run, folder):
    variables, printed = run("explain")
    # Contributions are computed in float64 and returned in float32; a logit is of the order of 10.
    assert variables["difference"].abs().max() < 1e-4
    assert variables["maps"]["heat_maps"].shape[1:] == (32, 32)
    assert printed.count("responds to") == len(variables["words"]["codes"])
    gallery = folder / "outputs/tutorials/gallery"
    assert (gallery / "index.html").exists() and (gallery / "codes.parquet").exists()
    # Figures may show codes that have no page: twelve of them, each in a figure of its own and six to a sheet.
    figures = {path.name for path in (gallery / "figures").iterdir()}
    assert {"codes_1.png", "codes_2.png"} < figures and len(figures) == 2 + 12


def test_convert_and_verify(run, folder, caplog):
    with caplog.at_level("INFO"):
        _, printed = run("convert_and_verify")
    assert caplog.text.count("verified") == 3
    assert "the round trip is exact: True" in printed
    assert isinstance(FDTModel.from_pretrained(folder / "outputs/tutorials/conversion/fdt"), FDTModel)
