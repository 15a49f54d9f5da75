"""The network on sockets: py-libp2p behind `protocols.net.Network`. Nothing outside this folder imports libp2p."""

from protocols.net_libp2p.lean import lean_imports

with lean_imports():
    from protocols.net_libp2p.network import NetConfig, open_network

__all__ = ["NetConfig", "open_network"]
