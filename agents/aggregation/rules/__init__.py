"""Rules, one a file, each with its paper."""
