"""What a member knows of a workspace, on its disk: its root and every entry. storage/FORMAT.md, "Workspaces"."""

from agents.journal import EntryJournal


class Journal(EntryJournal):
    """One workspace's file."""

    header = b"CVYWKSP\x01"
    what = "workspaces"
