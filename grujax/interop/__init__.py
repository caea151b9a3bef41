"""Weights from and to other frameworks, one file a framework; each imports its framework only when called."""
