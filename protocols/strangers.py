"""How many peers that came by themselves may be connected, in all and from one network: nobody takes all places."""

from collections.abc import Sequence
from typing import Final

MAX_STRANGERS: Final = 200  # connections of peers that came by themselves and are not protected
MAX_STRANGERS_PER_SUBNET: Final = 32  # of these, from one /24 or /48 of the public internet
MAX_OF_SUBNET_IN_TABLE: Final = 3  # of the DHT's routing table, all buckets together; as in go-libp2p


def reason_against(subnets: Sequence[str], subnet: str, most: int = MAX_STRANGERS) -> str:
    """Why a stranger's new connection cannot stay; empty where it can.

    Args:
        subnets: Those of all strangers' connections, the new one included; empty texts for what is not public.
        subnet: That of the new one.
        most: How many strangers there is room for.
    """
    if len(subnets) > most:
        return "too many strangers"
    if subnet and subnets.count(subnet) > MAX_STRANGERS_PER_SUBNET:
        return f"too many strangers from {subnet}"
    return ""
