"""The engine: a worker process with torch in it, and the torch-free client that drives it."""
