"""The site: its reference has every public name, its pictures have an alt text, and both columns of its table run.

`nox -s docs` builds it, and runs the code of its notebooks.
"""

import importlib
import os
import pkgutil
import re
import warnings
from pathlib import Path

import jax
import pytest

import grujax

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
os.environ.setdefault("KERAS_BACKEND", "jax")
PAGES = {str(page.relative_to(DOCS)): page.read_text() for page in sorted(DOCS.rglob("*.md"))}
REFERENCE = "\n".join(text for name, text in PAGES.items() if name.startswith("reference/"))
PACKAGES = ["grujax", *(f"grujax.{m.name}" for m in pkgutil.iter_modules(grujax.__path__) if m.ispkg)]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_a_place_in_the_reference(package):
    """A package with `__all__` has `.. automodule:: package` on a page, which documents the names in `__all__`."""
    names = getattr(importlib.import_module(package), "__all__", ())
    found = re.search(rf"^\.\. automodule:: {re.escape(package)}$(?:\n   :exclude-members: (.*))?", REFERENCE, re.M)
    elsewhere = {*grujax.__all__, "name", "parent", "scope"}  # the last three are Flax's
    assert not names or found, f"add docs/reference/{package.rpartition('.')[2]}.md, and name it in its index.md"
    left_out = set((found[1] or "").split(", ")) - {""} if found else set()
    assert left_out <= elsewhere, left_out - elsewhere


@pytest.mark.parametrize("framework", ["torch", "keras", "onnx", "flax", "nnx", "equinox", "haiku", "stablehlo"])
def test_every_converter_has_a_place_in_the_reference(framework):
    written = (ROOT / f"grujax/interop/{framework}.py").read_text()
    names = re.findall(rf"^def ((?:from|to)_{framework})\(", written, re.M)
    found = re.findall(rf"^\.\. automodule:: grujax.interop.{framework}\n   :members: (.*)$", REFERENCE, re.M)
    assert names and [sorted(given.split(", ")) for given in found] == [sorted(names)]


@pytest.mark.parametrize("folder", ["tutorials", "reference"])
def test_every_page_of_a_folder_is_in_its_list(folder):
    _, listed = PAGES[f"{folder}/index.md"].split("```{toctree}")
    names = {name.removeprefix(f"{folder}/").removesuffix(".md") for name in PAGES if name.startswith(f"{folder}/")}
    assert names - {"index"} == set(re.findall(r"^([\w-]+)$", listed, re.M))


@pytest.mark.parametrize("page", PAGES)
def test_every_picture_has_words(page):
    """The build also requires this of pictures that the code of a page draws."""
    cells = re.findall(r"^```\{code-cell\}.*?\n(.*?)^```", PAGES[page], re.S | re.M)
    drawn = [cell for cell in cells if re.search(r"^figure, |^(inspect\.)?plot_\w+\(", cell, re.M)]
    assert all(re.search(r'^    alt: ".{20,}"$', cell, re.M) for cell in drawn)
    assert "![](" not in PAGES[page]


def test_every_plot_of_the_package_is_in_the_gallery():
    written = "".join(path.read_text() for path in (ROOT / "grujax").rglob("plots.py"))
    drawn = re.findall(r"^(?:inspect\.)?(plot_\w+)\(", PAGES["gallery.md"], re.M)
    assert sorted(re.findall(r"^def (plot_\w+)\(", written, re.M)) == sorted(drawn)


LEFT = {
    "PyTorch": (
        "torch",
        "import torch; from torch import nn; x, x_t, h = torch.ones(3, 7, 10), torch.ones(3, 10), torch.zeros(3, 20)\n"
        "from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence; lengths = torch.tensor([7, 4, 2])",
    ),
    "Keras": ("keras", "import keras; from keras import layers"),
    "Flax": ("flax", "import flax.linen as nn"),
    "Haiku": ("haiku", "import haiku as hk; run = lambda lines: hk.transform(lines).init(key)"),
    "Equinox": ("equinox", "import equinox as eqx"),
}
"""For each section of coming-from.md: the package that the left column needs, and the code to run before it."""
BEFORE, *SECTIONS = re.split(r"^## (.*)\n", PAGES["coming-from.md"], flags=re.M)
TABLES = {
    title: re.findall(r"^\| `(.+)` \| `(.+)` \|$", text, re.M)
    for title, text in zip(SECTIONS[::2], SECTIONS[1::2], strict=True)
}


(HEAD,) = re.findall(r"^```python\n(.*?)^```", BEFORE, re.S | re.M)


@pytest.fixture
def as_a_user(tmp_path, monkeypatch):
    """Runs the test in an empty folder, without the strict numerics of the other tests."""
    monkeypatch.chdir(tmp_path)
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_every_framework_has_a_table():
    assert list(TABLES) == list(LEFT) and all(len(rows) >= 8 for rows in TABLES.values())
    lines = re.findall(r"^\| .*`.* \|$", PAGES["coming-from.md"], re.M)
    assert len(lines) == sum(map(len, TABLES.values()))


@pytest.mark.parametrize("title", LEFT)
def test_the_right_column_runs(title, as_a_user):
    space = {}
    for line in (HEAD, *(right for _, right in TABLES[title])):
        exec(compile(line, line, "exec"), space)
    assert "GRU" in space


@pytest.mark.slow  # it contains no grujax code
@pytest.mark.parametrize("title", LEFT)
def test_the_left_column_runs_where_its_library_is_installed(title, as_a_user):
    package, imports = LEFT[title]
    pytest.importorskip(package, reason=f"{package} is not installed")
    space = {}
    with warnings.catch_warnings(action="ignore"):  # warnings of other libraries
        exec(HEAD + imports, space)
        run = space["run"] if "run" in space else lambda lines: lines()
        run(lambda: [exec(compile(left, left, "exec"), space) for left, _ in TABLES[title]] and None)
    assert "x_t" in space
