"""Bitswap 1.2: ask many peers for blocks and answer theirs. Wire, core of wanting, core of serving, shell."""
