"""Artifacts of every kind, by their signed manifests: publish, fetch, register, fill the catalog again from blocks."""
