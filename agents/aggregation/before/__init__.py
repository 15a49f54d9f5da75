"""Steps in front of a rule, one a file: they mix updates, and compose with every rule."""
