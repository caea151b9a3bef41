"""The Python blocks of each document run as one program, and everything that the tables name exists.

By default one document runs; for the others, every function and argument is looked up.
"""

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from numerics import of_a_user
from shown import calls_that_bind

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
FEATURES = (ROOT / "docs/features.md").read_text()
TABLE = re.search(r"^\| .*\| checked by \|\n\|[-|]+\n((?:\|.*\n)+)", FEATURES, re.MULTILINE)


NEEDS = {
    "forecasting.md": ["pandas"],
    "guide.md": [],
    "decisions/other-cells.md": [],
    "interop.md": ["torch", "onnx"],
    "take-a-gru-out.md": ["onnx"],
    "training.md": [],
    "seq2seq.md": [],
    "equinox.md": ["equinox"],
    "estimators.md": ["sklearn", "aeon"],
}
SHORT = {"take-a-gru-out.md"}
"""tests/core, training, estimators, seq2seq, interop and test_equinox.py check what the other documents show."""
PRINTED = {"guide.md": 3, "estimators.md": 4}


def program_of(file):
    for package in NEEDS[file]:
        pytest.importorskip(package, reason=f"a block needs {package}, which is not installed")
    return "\n".join(re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / file).read_text(), re.DOTALL | re.MULTILINE))


@pytest.mark.parametrize("file", [pytest.param(f, marks=[pytest.mark.slow] * (f not in SHORT)) for f in NEEDS])
def test_every_block_runs(file, tmp_path, monkeypatch, capsys):
    program = program_of(file)
    monkeypatch.chdir(tmp_path)
    with of_a_user():
        exec(compile(program, file, "exec"), {"__name__": "__main__"})
    printed = re.findall(r"^(?:print\(.*|    print\(.*)# (.*)$", program, re.MULTILINE)
    assert len(printed) == PRINTED.get(file, 0)
    for line, found in zip(printed, capsys.readouterr().out.splitlines(), strict=True):
        assert re.fullmatch(re.escape(line).replace(r"\.\.\.", ".*"), found), (line, found)


@pytest.mark.slow
@pytest.mark.parametrize("file", NEEDS)
def test_every_document_is_a_program_of_its_own(file, tmp_path):
    command = [sys.executable, "-W", "error", "-c", program_of(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", NEEDS)
def test_every_function_of_grujax_is_there_and_takes_the_arguments_that_are_shown(file):
    assert calls_that_bind(program_of(file)) >= 2


def test_extras_are_installed_by_one_sentence_and_exist():
    """All use the sentence of `require_package`; install.md may name the path of a clone instead of grujax."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = []
    for path in (*ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.py"), *ROOT.glob("grujax/**/*.py")):
        for what, found in re.findall(r"pip install (?:-e )?'(.*?)\[([a-z,{}-]+)\]'", path.read_text()):
            assert what == "grujax" or path.name == "install.md", f"{path}: {what}[{found}]"
            named += [name for name in found.split(",") if name != "{extra}"]
    assert {"plot", "forecast", "sklearn"} <= set(named) <= extras.keys()


def test_the_table_of_conversions_has_a_row_for_each_that_is_measured():
    """A row names the framework and what a conversion loses; `python benchmarks/conversions.py` measures them again."""
    spec = importlib.util.spec_from_file_location("conversions", ROOT / "benchmarks/conversions.py")
    assert spec is not None and spec.loader is not None
    conversions = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conversions)
    _, below = (ROOT / "docs/interop.md").read_text().split("| a conversion loses |")
    found = re.findall(r"^\| (.*) \| (.*) \| (\d\.\de-\d\d) \|$", below, re.MULTILINE)
    assert [row[:2] for row in found] == [(row.framework, row.loses) for row in conversions.ROWS]
    assert all(float(difference) < 1e-6 for *_, difference in found)


def rows():
    assert TABLE is not None, "docs/features.md has no table"
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in TABLE[1].splitlines()]


@pytest.mark.parametrize("row", rows() if TABLE else [None], ids=lambda row: row and row[0])
def test_each_feature_names_a_test_that_exists(row):
    """A row names `test` if only one file has a test of that name, and `file::test` if several have."""
    feature, grujax, *_, checked_by = row
    assert feature and grujax
    named = re.findall(r"`(?:(\w+)::)?(test_\w+)`", checked_by)
    assert named, checked_by
    for file, test in named:
        paths = (ROOT / "tests").rglob(f"{file or 'test_*'}.py")
        found = [p.stem for p in paths if re.search(rf"^def {test}\(", p.read_text(), re.MULTILINE)]
        assert len(found) == 1, (test, found)


def test_the_readme_says_how_many_rows_there_are():
    assert f"[All {len(rows())} rows](docs/features.md)" in README


def test_the_readme_s_rows_are_rows_of_the_table_of_features():
    lines = re.findall(r"^\| .*\|$", README.split("## Beside other libraries")[1], re.MULTILINE)
    rows = FEATURES.splitlines()
    assert len(lines) == 1 + 10 and all(sum(row.startswith(line) for row in rows) == 1 for line in lines)


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_between_pages_leads_to_a_file_and_a_heading(page):
    for target, heading in re.findall(r"\]\(([\w./-]+)?(?:#([\w-]+))?\)", page.read_text()):
        path = page.parent / target if target else page
        assert path.exists(), target
        titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE) if heading else []
        slugs = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
        assert not heading or heading in slugs, (target, heading, slugs)


def test_every_folder_of_tests_is_in_a_group_of_the_workflow():
    groups = re.findall(r"^          - (tests/.*)$", (ROOT / ".github/workflows/ci.yml").read_text(), re.MULTILINE)
    paths = [path for group in groups for path in group.split()]
    folders = {f"tests/{p.relative_to(ROOT / 'tests').parts[0]}" for p in (ROOT / "tests").glob("*/test_*.py")}
    assert sorted(paths) == sorted({*folders, "tests/test_*.py", "grujax"})


def test_raw_files_named_by_the_decisions_exist():
    named = re.findall(r"`(benchmarks/[\w/.-]+)`", "".join(page.read_text() for page in PAGES))
    assert named and all((ROOT / name).exists() for name in named), named
