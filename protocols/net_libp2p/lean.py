"""Keep out of memory what py-libp2p imports and a noise-over-TCP node never runs.

`import libp2p` pulls in every transport, TLS with an ACME client, DNS, UPnP and databases. Their modules are replaced
by stand-ins: a name imported from one is a class that says, when it is called, that Covey leaves this part out. That
serves annotations, `isinstance` and `except`, which is all that the code a Covey node runs does with them.

Measured on Python 3.11, libp2p 0.8.1, one fresh interpreter each, wall time and resident memory at the end:

    ==============================================  =======  ========  =======
    import                                               ms       MB   modules
    ==============================================  =======  ========  =======
    interpreter and trio                                 176       25       224
    + libp2p, kad-dht, gossipsub, as shipped          1,200       89     1,428
    + the same with stand-ins                       370-470       57       814
    ==============================================  =======  ========  =======

What each would add to the last line, brought back alone: TLS with its ACME client 20 MB and 310 ms, DNS 10 MB and
160 ms, QUIC 3 MB and 70 ms (its parser of certificates comes with TLS too), the others 0.6 to 1.6 MB each.
"""

import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

LEFT_OUT: Final = (
    "libp2p.discovery",
    "libp2p.host.autonat",
    "libp2p.peer.persistent",
    "libp2p.relay",
    "libp2p.security.secio",
    "libp2p.security.tls",
    "libp2p.transport.quic",
    "libp2p.transport.webrtc",
    "libp2p.transport.websocket",
    "libp2p.transport.webtransport",
    "multiaddr.resolvers",
)


class LeftOut(RuntimeError):
    """libp2p began to use a part that Covey leaves out. Take it off LEFT_OUT in protocols/net_libp2p/lean.py."""


class _StandIn(type):
    """The type of every name imported from a part that is left out."""

    def __call__(cls, *args: object, **kwargs: object) -> object:
        raise LeftOut(f"{cls.__module__}.{cls.__name__} was called: {LeftOut.__doc__}")


class _Part(types.ModuleType):
    """A module that is left out; it has any public name that is asked for."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        # An exception class, because names in `except` clauses have to be that.
        stand_in = _StandIn(name, (Exception,), {"__module__": self.__name__})
        setattr(self, name, stand_in)
        return stand_in


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if any(fullname == part or fullname.startswith(f"{part}.") for part in LEFT_OUT):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Part(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


@contextmanager
def lean_imports() -> Iterator[None]:
    """Import libp2p in this block. Behind it, other code's imports of the same parts get the real ones."""
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name, module in sys.modules.items() if isinstance(module, _Part)]:
            del sys.modules[name]
