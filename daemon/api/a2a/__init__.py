"""Agents of this node's workspaces for programs that speak A2A 1.0 (JSON-RPC over HTTP)."""
