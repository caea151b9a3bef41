"""Weights from and to other frameworks: one file a framework, each imported only where it is called for."""

from grujax.interop.adapters import Difference
from grujax.interop.files import FORMATS, Converted, convert, load, save
from grujax.interop.model_parts import ConversionWarning
from grujax.interop.statistics import fold_statistics

__all__ = ["FORMATS", "ConversionWarning", "Converted", "Difference", "convert", "fold_statistics", "load", "save"]
