"""The files of an experiment in the store: shown, brought here, exported, and verified over."""
