"""Make a connection over a relay a direct one, through routers that let nobody in: both ends dial at once (DCUtR).

Source: libp2p/specs, relay/DCUtR.
"""
