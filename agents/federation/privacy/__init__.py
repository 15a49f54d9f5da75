"""Differential privacy: clipping, noise, what it costs, and a budget that ends an experiment.

`clipping` bounds what one client or example can change, `noise` hides the rest, `rdp` and `pld` say how much was told,
`ledger` keeps count on the disk before a result is published. What is claimed, and what not: agents/FEDERATION.md.
"""
