"""Rounds without a coordinator: each member has a model of its own, and signs which states it made the mean of.

agents/FEDERATION.md, "Without a coordinator".
"""
