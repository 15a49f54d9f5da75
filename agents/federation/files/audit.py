"""Verify an experiment over a store: what `agents.federation.results.verify` finds, and what it comes to as a whole."""

import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from agents.adapters.ports import Ports
from agents.errors import AgentError
from agents.federation.events.book import Book
from agents.federation.files.shelf import CheckedShelf
from agents.federation.plans.compatibility import Unreckonable
from agents.federation.plans.compatibility import check as check_plan
from agents.federation.results.neighbours import verify_gossip
from agents.federation.results.verify import Finding, verify
from protocols.entry import Entry
from protocols.errors import Unknown

Verdict = Literal["proved", "refuted", "not decidable"]


class Refuted(AgentError):
    """Signed events contradict each other, or the computation. The findings name who signed them."""

    code = "refuted"


class Undecided(AgentError):
    """Something is not known here. Try again once more members can be reached, unless a finding says more."""

    code = "undecided"


def audit(
    ports: Ports,
    plan: Entry,
    entries: Iterable[Entry],
    scratch: Path,
    on_finding: Callable[[Finding], None] = lambda finding: None,
    n_lost: int = 0,
) -> list[Finding]:
    """Check everything anew, in a thread, with a book that believes no result. Raises: Malformed, StorageError.

    n_lost: how many events there are said to be beside these.
    """
    book = Book(plan)
    findings = []
    if n_lost:
        what = f"{n_lost} events that belong to it are not here, or nobody signed them: they may contradict the others"
        findings.append(Finding(0, "not decidable", what))
        on_finding(findings[-1])
    for entry, error in book.add_all(entries):
        if not book.is_member(entry.author):
            continue  # anybody can sign anything and pack it with what members said: it blames none of them
        finding = Finding(0, "refuted", f"{entry.cid} is no event that a member may say: {error}", entry.author)
        if isinstance(error, Unknown):  # of another version: see below
            what = f"{entry.cid} of {entry.author} says {entry.kind}, which this node does not know: {error}"
            finding = Finding(0, "not decidable", what)
        findings.append(finding)
        on_finding(finding)
    try:
        check_plan(book.plan)
    except Unreckonable as error:
        findings.append(Finding(0, "refuted", f"the plan is none: {error}", book.author))
    except AgentError as error:  # another version may know what this one does not: that is nobody's fault
        findings.append(Finding(0, "not decidable", f"this node cannot go by the plan: {error}"))
    else:
        return findings + _checked(ports, book, scratch, on_finding)
    on_finding(findings[-1])
    return findings


def _checked(ports: Ports, book: Book, scratch: Path, on_finding: Callable[[Finding], None]) -> list[Finding]:
    findings = []
    folder = Path(tempfile.mkdtemp(dir=scratch))
    try:
        with ports.store.lease():
            shelf, me = CheckedShelf(ports, folder), ports.identity.peer_id
            is_gossip = book.plan.gossip is not None
            found = verify_gossip(book, shelf, folder) if is_gossip else verify(book, shelf, folder, me)
            for finding in found:
                findings.append(finding)
                on_finding(finding)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return findings


def verdict_of(findings: Iterable[Finding]) -> Verdict:
    """Of all findings together: one that is refuted counts first, then one that is not decidable.

    What a plan leaves undecidable by its very options is told, and does not make of a proof what is none.
    """
    verdicts = {finding.verdict for finding in findings if not finding.is_of_plan}
    if "refuted" in verdicts:
        return "refuted"
    return "proved" if verdicts == {"proved"} else "not decidable"
