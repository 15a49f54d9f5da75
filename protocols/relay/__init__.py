"""Reach a node that nobody can dial, over a peer that both can: circuit relay, version 2.

Source: libp2p/specs, relay/circuit-v2. The relay carries bytes that it cannot read: both ends shake hands through it.
"""
