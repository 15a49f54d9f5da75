"""What a member knows of an experiment, on its disk: its plan and every event. storage/FORMAT.md, "Rounds"."""

from agents.journal import EntryJournal


class Journal(EntryJournal):
    """One experiment's file."""

    header = b"CVYRNDS\x01"
    what = "rounds"
