"""Yamux 1.0.0: many streams on one connection. Frames, the bounds of memory, the core; the shell is the adapter's."""
