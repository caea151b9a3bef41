"""Weights from and to other frameworks: one file a framework, each imported only where it is called for.

Each has `from_X(theirs) -> (model, variables)` and its inverse `to_X(model, variables) -> theirs`; both compute the
same. Sizes, options and dtype are read off what is given. `variables` is {"params": ...} alone, of ONNX and StableHLO
"statistics" too; its arrays are copies. Nothing is skipped, guessed or cast:

- `InputError` names the key, layer or field that has no place on the other side, what was expected and what was found;
- `ConversionWarning` names what is left behind though the outputs are the same: the split of biases, dropout;
- `verify` runs both sides on random data: the largest difference is logged (logger "grujax.interop", INFO), and one
  past the tolerance table raises. None does so with live objects whose weights have 32 bits or more.
"""

from grujax.interop.files import FORMATS, Converted, convert, load, save
from grujax.interop.find import find, replace
from grujax.interop.found import FoundGRU
from grujax.interop.parts import ConversionWarning
from grujax.interop.prove import Difference
from grujax.interop.statistics import fold_statistics

__all__ = [
    "FORMATS",
    "ConversionWarning",
    "Converted",
    "Difference",
    "FoundGRU",
    "convert",
    "find",
    "fold_statistics",
    "load",
    "replace",
    "save",
]
