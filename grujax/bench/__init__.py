"""Compares grujax with other GRUs: equal weights and inputs, checked results, and times measured alternately."""
