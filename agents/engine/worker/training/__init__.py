"""Training in the worker: examples to tensors, the low-rank parameters, the loop, checkpoints, the folder at the end."""
