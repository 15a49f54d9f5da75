"""The command line: an argument parser and a client of the control socket. It imports no event loop and no network."""
