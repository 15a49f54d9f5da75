"""Training in the worker: examples to tensors, the parameters, the loop, checkpoints, the folder at the end."""
