"""Can others dial this node? It asks some to try, and tries for others: AutoNAT, version 1.

Source: libp2p/specs, autonat/autonat-v1.
"""
