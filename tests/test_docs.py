"""README and docs are true: what they name exists, their Python runs and answers as printed, and the site builds."""

import dataclasses
import functools
import importlib.util
import re
import runpy
import shlex
import shutil
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from transformers import TrainingArguments

from tests.examples import MODEL, blocks, form_of, run_page, write_stand_ins


ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
OWN = "modeling_fdt", "conversion", "run_scripts"

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """Module and arguments of every `-m MODULE ...` in the page's bash blocks."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    split = [shlex.split(line, comments=True) for line in lines if " -m " in line]
    return [(words[words.index("-m") + 1], words[words.index("-m") + 2 :]) for words in split]


@functools.cache
def known_flags(module: str, *task: str) -> set[str]:
    """The flags that a command's own `--help` lists, or refers to."""
    printed, argv = StringIO(), sys.argv
    sys.argv = [module, *task, "--help"]
    try:
        with redirect_stdout(printed), pytest.raises(SystemExit):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        sys.argv = argv
    flags = set(re.findall(r"--[\w-]+", printed.getvalue()))
    if "transformers.TrainingArguments" in printed.getvalue():
        flags |= {f"--{field.name}" for field in dataclasses.fields(TrainingArguments)}
    return flags


@every_page
def test_files_exist(page):
    text = page.read_text(encoding="utf-8")
    paths = re.findall(rf"(?<![\w/.-])((?:{'|'.join(OWN)}|docs|tests)/[\w./*-]+)", text)
    missing = [path for path in paths if not any(ROOT.glob(path.rstrip("./")))]
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    # Pages of tutorials are made from scripts.
    missing += [
        link
        for link in links
        if not any((page.parent / link).with_suffix(s).exists() for s in ("", ".py", Path(link).suffix))
    ]
    assert not missing


@every_page
def test_make_targets_exist(page):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert set(re.findall(r"^ *make ([\w-]+)", "".join(blocks(page, "bash")), re.M)) <= set(targets)


@every_page
def test_modules_of_commands_exist(page):
    modules = re.findall(r"python -m ([\w.]+)", page.read_text(encoding="utf-8"))
    assert not [module for module in modules if importlib.util.find_spec(module) is None]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_flags_of_commands_are_known(page):
    unknown = []
    for module, arguments in commands(page):
        flags = {word.split("=")[0] for word in arguments if word.startswith("--")} - {"--help"}
        if flags and module.startswith(OWN):
            # run_evaluation takes a task before its flags; a page may write TASK for any of them.
            task = ["retrieval" if word == "TASK" else word for word in arguments[:1] if not word.startswith("-")]
            unknown += [f"{module}: {flag}" for flag in sorted(flags - known_flags(module, *task))]
    assert not unknown


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stand_ins")
    write_stand_ins(folder)
    return folder


# test_hub.py runs docs/hub.md, beside a Hub.
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if blocks(page, "python") and page.name != "hub.md"],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_examples_run_as_printed(page, stand_ins, tmp_path, monkeypatch):
    shutil.copytree(stand_ins, tmp_path, dirs_exist_ok=True)
    for name in ("checkpoints", "docs"):  # what a page may take from the repository itself
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    uses_stand_in = MODEL in page.read_text(encoding="utf-8")
    for promised, given in run_page(page):
        assert form_of(given, uses_stand_in) == form_of(promised, uses_stand_in)


def test_answers_are_compared(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nn = 1\nn + 1  # => 3\n[n, 'a']\n# => [1,\n#     'a']\n```\n")
    (wrong_promise, given), right = run_page(page)
    assert form_of(wrong_promise, False) != form_of(given, False) == "2"
    assert form_of(right[0], False) == form_of(right[1], False) == "[1,'a']"
    assert form_of("[0.25, 'b']", True) == form_of("[1e-3, 'a']", True) != form_of("[1, 2, 'a']", True)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site; a warning is an error, as with `mkdocs build --strict`."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder))
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    return folder


def test_reference_shows_shapes_links_and_help(site):
    models = (site / "api" / "models.html").read_text(encoding="utf-8")
    text = re.sub("<[^>]+>", "", models)
    assert "pixel_values (torch.FloatTensor of shape (batch_size, num_channels, height, width))" in text
    assert "image_embeds, text_embeds (torch.Tensor of shape (batch_size, codebook_dim))" in text
    assert "Args:" not in text and "[`" not in text
    assert 'href="explanation.html#modeling_fdt.FDTExplanation"' in models
    scripts = re.sub("<[^>]+>", "", (site / "api" / "scripts.html").read_text(encoding="utf-8"))
    assert "--num_examples (int, default 8)" in scripts and "Images and captions shown for each code." in scripts
    assert "['q_proj', 'v_proj']" in scripts  # a help text with a constant in it


def test_tutorial_is_prose_between_blocks_of_code(site):
    page = re.sub("<[^>]+>", "", (site / "tutorials" / "quick_start.html").read_text(encoding="utf-8"))
    assert "An embedding is a weighted sum of codes." in page and "# An embedding" not in page
    assert "Copyright" not in page
    assert not list(site.rglob("*.py"))


def test_site_needs_no_network(site):
    fetched = []
    for page in site.rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        fetched += re.findall(r"<(?:script|img|iframe)[^>]* src=\"?(https?://[^\" >]+)", html)
        fetched += re.findall(r"<link[^>]*rel=\"?(?:stylesheet|preconnect)\"?[^>]*href=\"?(https?://[^\" >]+)", html)
        fetched += re.findall(r"<link[^>]*href=\"?(https?://[^\" >]+)\"?[^>]*rel=\"?(?:stylesheet|preconnect)", html)
    assert not fetched
