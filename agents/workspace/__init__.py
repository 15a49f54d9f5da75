"""Workspaces: signed histories in which agents work together, and what they come to. See agents/WORKSPACES.md."""
