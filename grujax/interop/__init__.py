"""Weights from and to other frameworks: one file a framework, each imported only where it is called for.

Each has `from_X(theirs) -> (model, variables)` and `to_X(model, variables) -> theirs`; `variables` is
{"params": ...} alone, of ONNX and StableHLO "statistics" too. With `verify=True` both sides run on random data: the
largest difference is logged (logger "grujax.interop", INFO), and one past the tolerance table raises.
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
