"""Loads, checks, splits, batches and packs sequences from disk or memory. Uses NumPy alone, not JAX."""

from grujax.data.batches import Batch, batches, bucket_boundaries, padding_share
from grujax.data.checks import AxesWarning, DataWarning, UnitWarning
from grujax.data.load import load, load_sequences
from grujax.data.packing import Packed, pack_sequences, unpack_sequences
from grujax.data.sequences import Dataset, Sequences, sequences, statistics, stratified_split

__all__ = [
    "AxesWarning",
    "Batch",
    "DataWarning",
    "Dataset",
    "Packed",
    "Sequences",
    "UnitWarning",
    "batches",
    "bucket_boundaries",
    "load",
    "load_sequences",
    "pack_sequences",
    "padding_share",
    "sequences",
    "statistics",
    "stratified_split",
    "unpack_sequences",
]
