"""What bringing an index up to date has to tell, as data."""

import msgspec


class Skipped(msgspec.Struct, frozen=True, tag="skipped", tag_field="type"):
    """A file or folder that is not read, and why."""

    path: str
    reason: str


class Read(msgspec.Struct, frozen=True, kw_only=True, tag="read", tag_field="type"):
    """So many of the folder's files are done."""

    n_done: int
    n_files: int


class Loaded(msgspec.Struct, frozen=True, kw_only=True, tag="loaded", tag_field="type"):
    """The index is up to date. `skipped` counts the files left out by reason."""

    name: str
    root: str
    n_documents: int
    n_chunks: int
    n_embedded: int
    n_unchanged: int
    n_removed: int
    skipped: dict[str, int]


LoadEvent = Skipped | Read | Loaded
