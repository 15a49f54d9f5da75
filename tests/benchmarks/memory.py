"""Memory by words and by meaning: adding, searching, a restart, memory and disk, at several sizes, beside plain loops.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.memory [--items 1024 100000] [--tantivy]

Words: SQLite's FTS5 as agents use it, beside a loop of BM25 over words that were counted before, as rank_bm25 has it,
and tantivy in an environment of its own, where it is asked for. Meaning: the index in SQLite with usearch's exact
search as agents use it, beside numpy over the same rows in memory. Each runs in a process of its own. Adding is CPU
time, all else is as long as one waits. Texts are passages of Python's reference; most words of a question are common.
"""

import argparse
import math
import platform
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from agents.engine.texts import python_reference
from agents.retrieval import index as indexes
from agents.retrieval.chunks import Chunk
from agents.retrieval.index import Document, Index
from agents.retrieval.words import Words
from tests.interop.strangers import tantivy_packages

WIDTH = 384
N_QUESTIONS = 60
BATCH = 512
N_BEST = 10


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--items", type=int, nargs="+", default=[1024, 100_000])
    options.add_argument("--tantivy", action="store_true")
    options.add_argument("--only", help=argparse.SUPPRESS)
    asked = options.parse_args()
    if asked.only:
        print(measure(SORTS[asked.only](), asked.items[0]))
        return
    print(f"{platform.machine()}, Python {platform.python_version()}; passages of 8 to 40 words, vectors of {WIDTH}")
    print("| items | index | add s | search p50 ms | p99 ms | restart ms | adds MB | disk MB | found |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for n in asked.items:
        for name in SORTS:
            if name != "words: tantivy" or asked.tantivy:
                command = [sys.executable, "-m", "tests.benchmarks.memory", "--items", str(n), "--only", name]
                told = subprocess.run(command, capture_output=True, text=True, check=True)
                print(f"| {n} | {name} | {told.stdout.strip()} |", flush=True)


def measure(sort: Any, n: int) -> str:
    """Add all, search, open again and search once more: the cells of a row."""
    noise = random.Random(0)
    items, questions = sort.items(noise, n)
    before_mb = resident_mb()
    folder = Path(tempfile.mkdtemp())
    try:
        began_s = time.process_time()
        sort.add(folder, items)
        add_s = time.process_time() - began_s
        waits, n_found = [], 0
        sort.search(questions[0][1])
        for wanted, question in questions:
            began_s = time.perf_counter()
            found = sort.search(question)
            waits.append(1e3 * (time.perf_counter() - began_s))
            n_found += wanted in found[:N_BEST]
        adds_mb = resident_mb() - before_mb
        began_s = time.perf_counter()
        sort.again(folder)
        sort.search(questions[0][1])
        restart_ms = 1e3 * (time.perf_counter() - began_s)
        disk_mb = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    finally:
        shutil.rmtree(folder)
    waits.sort()
    p50, p99 = waits[len(waits) // 2], waits[math.ceil(0.99 * len(waits)) - 1]
    found_frac = n_found / len(questions)
    return f"{add_s:.2f} | {p50:.2f} | {p99:.2f} | {restart_ms:.0f} | {adds_mb:.0f} | {disk_mb:.1f} | {found_frac:.2f}"


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


# --- words


class OfWords:
    """What it is that is indexed: passages, each with a word of its own in three."""

    def items(self, noise: random.Random, n: int) -> tuple[Any, Any]:
        words = python_reference().split()
        texts = {}
        for number in range(n):
            start = noise.randrange(len(words) - 40)
            texts[f"{number:08}"] = " ".join([*words[start : start + noise.randrange(8, 40)], f"item{number // 3}"])
        questions = []
        for _ in range(N_QUESTIONS):
            name = f"{noise.randrange(n):08}"
            told = texts[name].split()
            start = noise.randrange(len(told) - 7)
            questions.append((name, " ".join([*told[start : start + 6], told[-1]])))
        return texts, questions


class Fts5(OfWords):
    def add(self, folder: Path, items: Any) -> None:
        self.again(folder)
        names = list(items)
        for at in range(0, len(names), BATCH):
            self.words.put({name: items[name] for name in names[at : at + BATCH]})

    def again(self, folder: Path) -> None:
        self.words = Words.open(folder / "words.db")

    def search(self, question: str) -> list[str]:
        return [name for _, name in self.words.search(question, 64)]


class Loop(OfWords):
    """BM25 as it is written down: for each word of the question a pass over all texts."""

    def add(self, folder: Path, items: Any) -> None:
        self.items_ = items
        self.counts = [(name, Counter(text.lower().split())) for name, text in items.items()]
        self.lengths = [sum(count.values()) for _, count in self.counts]
        self.n_with = Counter(word for _, count in self.counts for word in count)

    def again(self, folder: Path) -> None:
        self.add(folder, self.items_)

    def search(self, question: str) -> list[str]:
        usual, n = sum(self.lengths) / len(self.lengths), len(self.counts)
        scores = [0.0] * n
        for word in set(question.lower().split()):
            weight = math.log(1 + (n - self.n_with[word] + 0.5) / (self.n_with[word] + 0.5))
            for place, (_, count) in enumerate(self.counts):
                often = count.get(word, 0)
                scores[place] += weight * often * 2.2 / (often + 1.2 * (0.25 + 0.75 * self.lengths[place] / usual))
        best = sorted(range(n), key=lambda place: -scores[place])[:64]
        return [self.counts[place][0] for place in best]


class Tantivy(OfWords):
    def add(self, folder: Path, items: Any) -> None:
        sys.path.append(str(tantivy_packages()))
        import tantivy  # type: ignore[import-not-found]

        schema = tantivy.SchemaBuilder().add_text_field("name", stored=True, tokenizer_name="raw")
        schema = schema.add_text_field("text", tokenizer_name="en_stem").build()
        self.index = tantivy.Index(schema, path=str(folder))
        writer, names = self.index.writer(heap_size=15_000_000, num_threads=1), list(items)
        for at in range(0, len(names), BATCH):
            for name in names[at : at + BATCH]:
                writer.add_document(tantivy.Document(name=[name], text=[items[name]]))
            writer.commit()
        writer.wait_merging_threads()
        self._search()

    def _search(self) -> None:
        self.index.reload()
        self.searcher = self.index.searcher()

    def again(self, folder: Path) -> None:
        import tantivy

        self.index = tantivy.Index.open(str(folder))
        self._search()

    def search(self, question: str) -> list[str]:
        query = self.index.parse_query(" ".join(part for part in question.split() if part.isalnum()), ["text"])
        return [self.searcher.doc(at)["name"][0] for _, at in self.searcher.search(query, 64).hits]


# --- meaning


class OfMeaning:
    """What it is that is indexed: 200 clouds of vectors. A question is near one of them."""

    def items(self, noise: random.Random, n: int) -> tuple[Any, Any]:
        made = np.random.default_rng(0)
        centres = made.standard_normal((200, WIDTH), dtype=np.float32)
        rows = centres[made.integers(200, size=n)] + made.standard_normal((n, WIDTH), dtype=np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        questions = []
        for _ in range(N_QUESTIONS):
            place = noise.randrange(n)
            asked = rows[place] + 0.02 * made.standard_normal(WIDTH, dtype=np.float32)
            questions.append((f"{place:08}", (asked / np.linalg.norm(asked)).astype("<f4").tobytes()))
        return rows, questions


class Usearch(OfMeaning):
    def add(self, folder: Path, items: Any) -> None:
        indexes.MAX_CHUNKS = max(indexes.MAX_CHUNKS, len(items))  # type: ignore[misc]
        self.again(folder)
        for at in range(0, len(items), BATCH):
            rows = items[at : at + BATCH]
            documents = [
                Document(f"{at + place:08}", b"", (Chunk(first_line=1, last_line=1, text="a text of some words"),))
                for place in range(len(rows))
            ]
            self.index.put(documents, rows.tobytes(), WIDTH)

    def again(self, folder: Path) -> None:
        self.index = Index.open(folder, Path("minilm"))

    def search(self, question: bytes) -> list[str]:
        return [passage.path for passage in self.index.search(question, 64)]


class Numpy(OfMeaning):
    def add(self, folder: Path, items: Any) -> None:
        np.save(folder / "rows.npy", items)
        self.again(folder)

    def again(self, folder: Path) -> None:
        self.rows = np.load(folder / "rows.npy")

    def search(self, question: bytes) -> list[str]:
        scores = self.rows @ np.frombuffer(question, "<f4")
        best = np.argpartition(scores, -64)[-64:]
        return [f"{place:08}" for place in best[np.argsort(-scores[best])]]


SORTS = {
    "words: SQLite FTS5": Fts5,
    "words: BM25 in a loop": Loop,
    "words: tantivy": Tantivy,
    "meaning: usearch, exact": Usearch,
    "meaning: numpy": Numpy,
}


if __name__ == "__main__":
    main()
