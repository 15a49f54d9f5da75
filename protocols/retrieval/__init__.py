"""Blocks over HTTP, from trustless gateways and Kubo's RPC API, behind the same core of wanting as Bitswap's."""
