"""From a verified entry to the row that the catalog keeps of it."""

from protocols.artifacts import describe
from protocols.entry import Entry
from storage.catalog.artifacts import ArtifactRow
from storage.catalog.lineage import Origin, Parent


def artifact_row(entry: Entry, *, is_own: bool) -> ArtifactRow:
    """An artifact of any kind as the catalog keeps it. Raises: Malformed, TooBig."""
    said = describe(entry)
    return ArtifactRow(
        manifest=entry.cid,
        kind=said.kind,
        name=said.name,
        version=said.version,
        publisher=entry.author,
        n_bytes=said.n_bytes,
        created_unix_s=float(said.created_unix_s),
        base=said.base,
        files=said.files,
        licence=said.licence,
        description=said.description,
        is_own=is_own,
        parents=tuple(Parent(parent.entry, parent.role) for parent in said.parents),
        origins=tuple(Origin(*origin) for origin in said.origins),
        tags=said.tags,
        capabilities=said.capabilities,
        metrics=dict(said.metrics),
    )
