"""CIDs: what they say, and their other forms. Nothing is looked up."""

from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from daemon.api.operation import Operation, Params, Result

if TYPE_CHECKING:
    from daemon.app import Node

CidText = Annotated[str, Meta(max_length=2048, description="A CID in any base.")]
BaseName = Literal[
    "base2",
    "base8",
    "base10",
    "base16",
    "base16upper",
    "base32",
    "base32upper",
    "base32pad",
    "base32padupper",
    "base32hex",
    "base32hexupper",
    "base32hexpad",
    "base32hexpadupper",
    "base32z",
    "base36",
    "base36upper",
    "base58btc",
    "base58flickr",
    "base64",
    "base64pad",
    "base64url",
    "base64urlpad",
]


class Inspect(Params, frozen=True):
    """Which CID."""

    cid: CidText


class Inspected(Result, frozen=True):
    """What a CID says. `digest` is in hexadecimal; `is_verifiable`: bytes can be checked against it here.

    `v0` is none where there is no such form; `data_bytes` is how much data the CID itself holds, where it is of that
    kind.
    """

    cid: str
    version: int
    base: str
    codec: str
    hash: str
    is_verifiable: bool
    digest: str
    data_bytes: int | None
    v0: str | None
    v1: str


class Convert(Params, frozen=True):
    """A CID, and the form that is asked for: by default that of its version, in the usual base."""

    cid: CidText
    version: Annotated[Literal[0, 1], Meta(description="Default: as it is, or 1 where the base needs it.")] | None = (
        None
    )
    base: Annotated[BaseName, Meta(description="Default: base32, or base58btc for version 0.")] | None = None


class Converted(Result, frozen=True):
    """The same CID in that form."""

    cid: str


async def inspect(_node: "Node", params: Inspect) -> Inspected:
    """Take a CID apart."""
    from storage.cid import DAG_PB, HASHES, IDENTITY, SHA2_256, Cid
    from storage.multibase import PREFIXES
    from storage.multicodec import codec_name, hash_name

    cid = Cid.parse(params.cid)
    has_v0 = cid.codec == DAG_PB and cid.hash_code == SHA2_256
    return Inspected(
        cid=params.cid,
        version=cid.version,
        base="base58btc" if cid.version == 0 else PREFIXES[params.cid[0]].name,
        codec=codec_name(cid.codec),
        hash=hash_name(cid.hash_code),
        is_verifiable=cid.hash_code in HASHES or cid.hash_code == IDENTITY,
        digest=cid.digest.hex(),
        data_bytes=len(cid.digest) if cid.hash_code == IDENTITY else None,
        v0=str(cid.as_v0()) if has_v0 else None,
        v1=str(cid.as_v1()),
    )


async def convert(_node: "Node", params: Convert) -> Converted:
    """Write a CID in another version or base."""
    from daemon.errors import Unfit
    from storage.cid import Cid
    from storage.errors import InvalidCid

    cid = Cid.parse(params.cid)
    needs_v1 = params.base not in (None, "base58btc")
    version = (1 if needs_v1 else cid.version) if params.version is None else params.version
    try:
        cid = cid.as_v0() if version == 0 else cid.as_v1()
        return Converted(cid=cid.encode(params.base) if params.base else str(cid))
    except InvalidCid as error:
        raise Unfit(str(error)) from None


OPERATIONS = (
    Operation(
        noun="cid",
        verb="inspect",
        summary="Show what a CID says: version, codec, hash, base.",
        params=Inspect,
        result=Inspected,
        handler=inspect,
        arguments=("cid",),
    ),
    Operation(
        noun="cid",
        verb="convert",
        summary="Write a CID in another version or base.",
        params=Convert,
        result=Converted,
        handler=convert,
        arguments=("cid",),
    ),
)
