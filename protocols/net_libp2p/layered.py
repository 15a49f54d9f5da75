"""What a connection that lies over another leaves to it: everything but its bytes."""

from typing import Any


class Layered:
    """Base of libp2p's raw and secure connections that are ours; a subclass reads and writes by `_conn`."""

    _conn: Any

    async def close(self) -> None:
        """Close the connection."""
        await self._conn.close()

    def get_remote_address(self) -> Any:
        """See `IRawConnection` and `ISecureConn`."""
        return self._conn.get_remote_address()

    def get_transport_addresses(self) -> Any:
        """See `IRawConnection` and `ISecureConn`."""
        return self._conn.get_transport_addresses()

    def get_connection_type(self) -> Any:
        """See `IRawConnection` and `ISecureConn`."""
        return self._conn.get_connection_type()
