"""Who runs the recurrence: `gru_sequence` is the door, `explain` says what stands behind it."""

from grujax.kernels.table import Explanation, explain, gru_sequence, gru_sequences

__all__ = ["Explanation", "explain", "gru_sequence", "gru_sequences"]
