"""Converts weights from and to other frameworks; each has its module, which imports the framework only when needed.

Each module has `from_X(source) -> (model, variables)` and the inverse `to_X(model, variables)`; both sides compute the
same. Sizes, options and dtype are those of the source. `variables` is {"params": ...}, for ONNX and StableHLO also with
"statistics"; its arrays are copies. Nothing is skipped, guessed or cast:

- `InputError` names the key, layer or field that the other side cannot represent, what was expected and what was found;
- `ConversionWarning` names what is dropped although the outputs stay the same, such as the split of biases or dropout;
- `verify` runs both sides on random data, logs the largest difference (logger "grujax.interop", level INFO) and raises
  if it exceeds the tolerances. `verify=None` does this for live objects whose weights have 32 bits or more.
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
