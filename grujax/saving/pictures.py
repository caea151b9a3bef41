"""Figures of matplotlib and the PNG files that hold them; a file is written completely or not at all.

matplotlib comes with the extra `plot`.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from grujax.errors import require, require_package
from grujax.saving.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> "Figure":
    """Returns an empty figure of a size in inches. Raises `InputError` if matplotlib is not installed."""
    return require_package("matplotlib.figure", "plot").Figure(figsize=(width, height), layout="constrained")


def written(figure: "Figure", path: str | Path | None) -> "Figure":
    """Writes the figure to the PNG file `path`, unless it is None, and returns the figure."""
    if path is not None:
        require(Path(path).suffix.lower() == ".png", "path", "a name that ends in .png", f"{str(path)!r}")
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=150)
    return figure
