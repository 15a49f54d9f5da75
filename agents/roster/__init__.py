"""Agents: who they are, where they are hosted, and how one answers when a step of a run is its to do."""
