"""What is installed: the pins of constraints.txt, and the wheel, which works where the repository is not."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement

from . import golden


ROOT = Path(__file__).parents[1]
PACKAGES = ("conversion", "modeling_fdt", "run_scripts")
PYTHONS = ("3.10.13", "3.11.7", "3.12.1", "3.13.0")
UNPINNED = {"torch", "triton"}  # the Makefile's


def read_requirements(extra: str) -> list[Requirement]:
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = f"{parser['options']['install_requires']}\n{parser['options.extras_require'][extra]}".splitlines()
    return [Requirement(line) for line in lines if line]


def read_pins(name: str) -> list[Requirement]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def normalize(name: str) -> str:
    return name.lower().replace("_", "-")


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(("file", "extra"), [("constraints.txt", "test"), ("constraints-oldest.txt", "oldest")])
def test_every_dependency_has_one_pin_that_fits(file, extra, python):
    environment = {**default_environment(), "python_version": python.rpartition(".")[0], "python_full_version": python}
    pins = [pin for pin in read_pins(file) if pin.marker is None or pin.marker.evaluate(environment)]
    versions = {normalize(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    assert len(versions) == len(pins)
    requirements = [r for r in read_requirements(extra) if normalize(r.name) not in UNPINNED]
    wrong = [
        str(r)
        for r in requirements
        if normalize(r.name) not in versions or not r.specifier.contains(versions[normalize(r.name)])
    ]
    assert not wrong, f"{file} lacks {wrong}: run `make constraints`"
    assert not UNPINNED & set(versions)


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder into which pip has installed the wheel."""
    work = tmp_path_factory.mktemp("wheel")
    source = work / "source"  # a build writes beside what it builds
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("LICENSE", "README.md", "pyproject.toml", "setup.cfg"):
        shutil.copy(ROOT / name, source)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", work, source],
        check=True,
        capture_output=True,
    )
    (wheel,) = work.glob("*.whl")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-index",
        "--no-deps",
        "--target",
        work / "installed",
        wheel,
    ]
    subprocess.run(command, check=True, capture_output=True)
    return work / "installed"


def list_files(folder: Path) -> set[str]:
    paths = [path for package in PACKAGES for path in (folder / package).rglob("*")]
    return {str(path.relative_to(folder)) for path in paths if path.is_file() and "__pycache__" not in path.parts}


def test_the_wheel_holds_every_file_of_the_packages(installed):
    assert list_files(installed) == list_files(ROOT)
    (metadata,) = installed.glob("fdt_transformers-*.dist-info")
    assert {path.name for path in metadata.rglob("*LICENSE")} == {"LICENSE", "BPE_LICENSE"}


@pytest.mark.slow
def test_the_wheel_trains_evaluates_draws_and_converts_outside_the_repository(installed, tmp_path):
    checkpoint = golden.write_checkpoint("tiny_clip_fdt", tmp_path)
    config = golden.config_path("tiny_clip_fdt", golden.FDT_CASES[0])
    # Without `site` (-S) nothing that is installed as editable is found.
    path = f"{installed}:{sysconfig.get_path('purelib')}"
    subprocess.run(
        [sys.executable, "-S", ROOT / "tests" / "wheel_process.py", checkpoint, config],
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        timeout=600,
    )
    report = json.loads((tmp_path / "report.json").read_text())
    assert all(Path(file).is_relative_to(installed) for file in report["files"])
    assert (report["model"], report["processor"]) == ("FDTModel", "FDTProcessor")
    assert report["labels"] == ["a blue square", "a red circle"]
    for name in ("r.html", "gallery/index.html", "converted/README.md"):
        assert (tmp_path / name).exists()
