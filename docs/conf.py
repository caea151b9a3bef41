"""The site: `nox -s docs` builds it from this folder, and runs the code of its notebooks."""

import inspect
import re
from dataclasses import is_dataclass
from pathlib import Path
from textwrap import dedent, indent

import numpy.typing
from docutils import nodes
from jax.typing import ArrayLike, DTypeLike
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.typing import stringify_annotation

import grujax
from grujax.core.config import Precision
from grujax.types import Activation

project, author, copyright = "grujax", "The grujax authors", "the grujax authors"
version = release = grujax.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_design", "sphinx_copybutton"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
nb_execution_raise_on_error = True
nb_execution_in_temp = True  # what a page writes stays out of this folder
nb_execution_timeout = 600
suppress_warnings = ["ref.python"]  # a field's name that several records have is no link

autodoc_default_options = {
    "members": True,
    "special-members": "__call__",
    "member-order": "bysource",
}
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
default_role = "py:obj"  # `name` in a docstring is code, and a link where the reference has that name

ALIASES = {
    stringify_annotation(of, "smart"): name
    for name, of in [
        ("ArrayLike", ArrayLike),
        ("ArrayLike", numpy.typing.ArrayLike),
        ("DTypeLike", DTypeLike),
        ("Activation", Activation),
        ("Precision", Precision),
    ]
} | {"<class 'jax.numpy.float32'>": "float32"}

html_theme = "pydata_sphinx_theme"
html_title = "grujax"
html_baseurl = "https://grujax.github.io/grujax/"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_show_sourcelink = False
SOURCE = "https://github.com/grujax/grujax"
html_theme_options = {"github_url": SOURCE, "header_links_before_dropdown": 6, "show_prev_next": True}
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True


def as_on_github(app: Sphinx, page: str, source: list[str]) -> None:
    """Links of a page that lead out of this folder lead to the repository. Two pages list others.

    Below decisions/README are all decisions. Every page of this folder that no other page lists is a how-to.
    """
    outside = "../" * (page.count("/") + 1)
    source[0] = source[0].replace(f"]({outside}", f"]({SOURCE}/blob/main/")
    below = {"decisions/README": [":glob:", "", "*"], "how-to": ["", *how_tos()]}.get(page)
    if below:
        source[0] += "\n".join(["\n```{toctree}", ":hidden:", *below, "```\n"])


def how_tos() -> list[str]:
    """The pages that no list of pages has, without the first of all."""
    pages = {page.stem: page.read_text(encoding="utf-8") for page in sorted(Path(__file__).parent.glob("*.md"))}
    listed = re.findall(r"^([\w/-]+)$", "\n".join(pages.values()), re.MULTILINE)
    return [page for page in pages if page not in (*listed, "index")]


SPECIAL = r"(`+[^`]+`+)(?=(\w?))|([*|\\])"
NAMED = r"[a-z_]\w*(?:, \w+)*: "
FIELD = r"(?ms)^    (\w+): (?:(?!\n    \w)[^\"])*?  # ([^\n]*)"


def as_plain_text(app: Sphinx, what: str, name: str, of: object, options: object, lines: list[str]) -> None:
    """Docstrings are plain text: what is indented is an equation, `x: ...` an argument, and * and | are themselves."""
    paragraphs = "\n".join(lines).split("\n\n")
    for i, paragraph in enumerate(paragraphs):
        if all(line.startswith("    ") for line in paragraph.splitlines()) and paragraph.strip():
            paragraphs[i] = f".. code-block:: text\n\n{paragraph}"
        elif not paragraph.lstrip().startswith(">>>"):
            head, _, below = re.sub(SPECIAL, escaped, paragraph).partition("\n")
            if head == "Returns:":  # napoleon takes the words before a colon for a type
                paragraphs[i] = f":returns:\n{indent(listed(dedent(below)), '  ')}"
            elif what != "module" and re.match(NAMED, head):
                paragraphs[i] = listed(f"{head}\n{below}", always=True)
            else:
                paragraphs[i] = "Args:" * (head == "Attributes:") or head
                paragraphs[i] += f"\n{below}"
    before = [""] * (what in ("attribute", "data", "property"))  # or napoleon takes what is before a colon for a type
    fields = fields_of(of) if isinstance(of, type) else []
    lines[:] = [*before, *"\n\n".join(paragraphs).splitlines(), "", *fields]


def listed(text: str, always: bool = False) -> str:
    """What begins with `name: ` as items of a list; one alone as it is."""
    items = [" ".join(item.split()) for item in re.split(rf"\n(?={NAMED})", text)]
    return "\n".join(f"- {item}" for item in items) if items[1:] or always else items[0]


def fields_of(record: type) -> list[str]:
    """The fields of a record that have a comment beside them, in the class itself."""
    written = inspect.getsource(record) if is_dataclass(record) or issubclass(record, tuple) else ""
    fields = re.findall(FIELD, written)
    return [f":param {name}: {re.sub(SPECIAL, escaped, text)}" for name, text in fields]


BORROWED = ("Alias for field number", "Configure whether metadata should be requested")


def without_borrowed(app: Sphinx, what: str, name: str, of: object, skip: bool, options: object) -> bool | None:
    """Members that Python and scikit-learn made: fields of a named tuple are in its list, requests are not ours."""
    return True if (inspect.getdoc(of) or "").startswith(BORROWED) else None


def escaped(found: re.Match) -> str:
    """Code as it is, apart from a letter that follows; another character with a backslash."""
    code, follows, character = found.groups()
    return rf"{code}\ " if code and follows else code or rf"\{character}"


def as_written(
    app: Sphinx, what: str, name: str, of: object, options: object, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Types by the names that the code has for them; without the two fields that Flax adds to a module."""
    signature = re.sub(r"parent: .*? = <.*?>, name: str \| None = None, ", "", signature or "")
    for alias, name_of_it in ALIASES.items():
        signature, returns = signature.replace(alias, name_of_it), returns and returns.replace(alias, name_of_it)
    return signature or None, returns


def pictures_have_words(app: Sphinx, tree: nodes.document, page: str) -> None:
    """A picture without alternative text is a warning, which ends the build."""
    for picture in tree.findall(nodes.image):
        if not picture.get("alt"):
            logging.getLogger(__name__).warning("a picture without alternative text", location=picture)


def setup(app: Sphinx) -> None:
    app.connect("source-read", as_on_github)
    app.connect("autodoc-process-docstring", as_plain_text, priority=400)  # before napoleon, which reads sections
    app.connect("autodoc-process-signature", as_written)
    app.connect("autodoc-skip-member", without_borrowed)
    app.connect("doctree-resolved", pictures_have_words)
