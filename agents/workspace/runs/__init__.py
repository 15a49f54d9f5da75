"""Durable workflows in a workspace: a plan under a key, its steps claimed, begun, and committed once."""
