"""Measures grujax beside other GRUs: the same weights and inputs, results compared, then timed in turns."""
