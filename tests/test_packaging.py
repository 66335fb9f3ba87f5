"""What is installed: the pins of constraints.txt."""

from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement


ROOT = Path(__file__).parents[1]
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
