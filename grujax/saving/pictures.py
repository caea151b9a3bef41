"""Pictures on disk, written whole or not at all. matplotlib comes with the extra `plot`."""

from pathlib import Path
from typing import TYPE_CHECKING

from grujax.errors import require, require_package
from grujax.saving.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, sizes in inches. Raises `InputError` without matplotlib."""
    return require_package("matplotlib.figure", "plot").Figure(figsize=(width, height), layout="constrained")


def written(figure: "Figure", path: str | Path | None) -> "Figure":
    """The figure, written to the PNG file `path` where there is one."""
    if path is not None:
        require(Path(path).suffix.lower() == ".png", "path", "a name that ends in .png", f"{str(path)!r}")
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=150)
    return figure
