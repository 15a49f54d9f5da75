"""The running program: composition root, lifecycle, configuration, control API and command line."""

__version__ = "0.1.0"
