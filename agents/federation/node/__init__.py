"""Experiments on a node: the clock, journals, secrets, training, and how they stand for people."""
