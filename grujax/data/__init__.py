"""Sequences from disk or memory: load, check, standardise, bucket, batch, pack. NumPy only; no JAX."""

from grujax.data.batches import Batch, batches, bucket_boundaries, padding_share
from grujax.data.checks import AxesWarning
from grujax.data.load import load, load_sequences
from grujax.data.packing import Packed, pack_sequences, unpack_sequences
from grujax.data.sequences import Dataset, Sequences, sequences, statistics, stratified_split

__all__ = [
    "AxesWarning",
    "Batch",
    "Dataset",
    "Packed",
    "Sequences",
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
