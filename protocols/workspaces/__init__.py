"""Workspaces on the wire: what is signed in one (entries), how it spreads (sync), how news are told (announce)."""
