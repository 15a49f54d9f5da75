"""How fast many adapters answer at once: `python -m tests.benchmarks.engine [--model tiny|smollm2]`.

Everything beside transformers and PEFT in the same run, with the same weights, prompts and adapters, greedy, on as many
threads as the engine takes by itself: one a core. Tokens a second are given by CPU time (`/cpu s`, which other work on
the machine hardly touches) and by wall time; each figure is the best of several rounds in turn. Where PEFT and the
engine differ in a token, the line says how far apart PEFT's two best logits were: below 1e-4 either is right.

The load test's clock is CPU time too: requests arrive at random (Poisson), and who is idle skips to the next arrival.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import random
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import safetensors.torch
import torch

from agents.engine.messages import Generate, Reply, Token
from agents.engine.worker.generation.batch import Batch, Limits
from agents.engine.worker.lora import Adapters
from agents.engine.worker.models import LoadedModel, load_model
from tests.models import SOURCES, cached_model

N_ADAPTERS = 8
NEAR = 1e-4
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TEXT = "The import statement finds a module and binds it to a name in the scope where the statement stands. "


class Speed(NamedTuple):
    """Tokens a second."""

    by_cpu: float
    by_wall: float


def write_adapter(folder: Path, linears: Adapters, seed: int, rank: int = 8) -> Path:
    """A PEFT folder of random matrices on all linear layers."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name in (name for name in linears.linear_names() if name.rpartition(".")[2] in ALL):
        linear = linears.linear(name)
        assert linear is not None
        a = torch.randn(rank, linear.in_features, generator=generator) / linear.in_features**0.5
        b = torch.randn(linear.out_features, rank, generator=generator) * 0.01
        tensors |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
    folder.mkdir(parents=True)
    safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "r": rank, "lora_alpha": 16}
    config |= {"target_modules": list(ALL), "lora_dropout": 0.0, "base_model_name_or_path": "base"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


class Theirs:
    """transformers and PEFT."""

    def __init__(self, folder: Path, adapters: list[Path]) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        base.generation_config.eos_token_id = None
        self.base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.base.generation_config.eos_token_id = None
        self.model = PeftModel.from_pretrained(base, adapters[0], adapter_name="0").eval()
        for n, path in enumerate(adapters[1:], 1):
            self.model.load_adapter(path, adapter_name=str(n))

    def plain(self, ids: torch.Tensor, n_tokens: int) -> torch.Tensor:
        """The base model without PEFT's layers."""
        return self._run(self.base, ids, n_tokens)

    def one(self, ids: torch.Tensor, n_tokens: int) -> torch.Tensor:
        """All rows with one adapter."""
        self.model.set_adapter("0")
        return self._run(self.model, ids, n_tokens)

    def mixed(self, ids: torch.Tensor, n_tokens: int) -> torch.Tensor:
        """Each row with its own, in one batch."""
        return self._run(self.model, ids, n_tokens, adapter_names=[str(n) for n in range(len(ids))])

    def serial(self, ids: torch.Tensor, n_tokens: int) -> list[torch.Tensor]:
        """Each row with its own, one after the other."""
        out = []
        for n in range(len(ids)):
            self.model.set_adapter(str(n))
            out.append(self._run(self.model, ids[n : n + 1], n_tokens)[0])
        return out

    def gaps(self, ids: torch.Tensor, n_tokens: int) -> list[tuple[list[int], list[float]]]:
        """Each row's tokens, one by one, and the distance of the two best logits at each."""
        out = []
        for n in range(len(ids)):
            self.model.set_adapter(str(n))
            made = self._run(self.model, ids[n : n + 1], n_tokens, output_scores=True, return_dict_in_generate=True)
            best = [scores[0].topk(2).values for scores in made.scores]
            out.append((made.sequences[0, ids.shape[1] :].tolist(), [float(one - two) for one, two in best]))
        return out

    @staticmethod
    def _run(model: Any, ids: torch.Tensor, n_tokens: int, **options: Any) -> Any:
        options |= {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0}
        return model.generate(input_ids=ids, max_new_tokens=n_tokens, min_new_tokens=n_tokens, **options)


class Ours:
    """The engine's batch, in this process."""

    def __init__(self, loaded: LoadedModel, adapters: list[Path], texts: list[str]) -> None:
        self._adapters = adapters
        self._texts = texts
        # A new prefix each round would be computed once and then reused; no other side does that here.
        self.batch = Batch(dataclasses.replace(loaded, end_tokens=frozenset()), Limits(1 << 30))
        self._n = 0
        self.said: list[str] = []

    def run(self, adapters: list[int | None], n_tokens: int) -> None:
        """One request a row, all at once."""
        replies: list[list[Reply]] = [[] for _ in adapters]
        for row, adapter in enumerate(adapters):
            self._n += 1
            folder = None if adapter is None else str(self._adapters[adapter])
            request = Generate(id=self._n, text=self._texts[row], adapter=folder, max_tokens=n_tokens)
            self.batch.start(request, replies[row].append, lambda: False)
        while not self.batch.is_idle:
            self.batch.step()
        self.batch._prefixes.shrink(0)
        self.said = ["".join(reply.text for reply in row if isinstance(reply, Token)) for row in replies]


def race(runs: dict[str, tuple[int, Callable[[int], object]]], n_tokens: int, n_rounds: int) -> dict[str, Speed]:
    """Each in turn, after a short run to warm up; the best of the rounds. `runs`: name -> (rows, run)."""
    best: dict[str, Speed] = {}
    for _, run in runs.values():
        run(2)
    for _ in range(n_rounds):
        for name, (n_rows, run) in runs.items():
            cpu_s, wall_s = time.process_time(), time.perf_counter()
            run(n_tokens)
            cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
            old, n = best.get(name, Speed(0, 0)), n_rows * n_tokens
            best[name] = Speed(max(old.by_cpu, n / cpu_s), max(old.by_wall, n / wall_s))
    return best


def throughput(theirs: Theirs, ours: Ours, ids: torch.Tensor, n_tokens: int, n_rounds: int) -> None:
    """Print tokens a second, and the ratios that count."""
    n, rows = len(ids), list(range(len(ids)))
    runs: dict[str, tuple[int, Callable[[int], object]]] = {
        "base, b=1: transformers": (1, lambda k: theirs.plain(ids[:1], k)),
        "base, b=1: engine": (1, lambda k: ours.run([None], k)),
        f"base, b={n}: transformers": (n, lambda k: theirs.plain(ids, k)),
        f"base, b={n}: engine": (n, lambda k: ours.run([None] * n, k)),
        "one adapter, b=1: PEFT": (1, lambda k: theirs.one(ids[:1], k)),
        "one adapter, b=1: engine": (1, lambda k: ours.run([0], k)),
        f"one adapter, b={n}: PEFT": (n, lambda k: theirs.one(ids, k)),
        f"one adapter, b={n}: engine": (n, lambda k: ours.run([0] * n, k)),
        f"{n} adapters, one by one: PEFT set_adapter": (n, lambda k: theirs.serial(ids, k)),
        f"{n} adapters, one batch: PEFT adapter_names": (n, lambda k: theirs.mixed(ids, k)),
        f"{n} adapters, one batch: engine": (n, lambda k: ours.run(list(rows), k)),
    }
    best = race(runs, n_tokens, n_rounds)
    print(f"\n| {n_tokens} tokens, prompts of {ids.shape[1]} | tokens /cpu s | tokens /s |\n| --- | --- | --- |")
    for name, speed in best.items():
        print(f"| {name} | {speed.by_cpu:.1f} | {speed.by_wall:.1f} |")
    mixed = best[f"{n} adapters, one batch: engine"]
    print("\n| ratio | by CPU time | by wall time |\n| --- | --- | --- |")
    for title, other in (
        ("mixed batch against PEFT adapter_names (goal 4 on tiny, 3 on SmolLM2)",
         f"{n} adapters, one batch: PEFT adapter_names"),
        ("mixed batch against PEFT one by one", f"{n} adapters, one by one: PEFT set_adapter"),
        (f"mixed batch against the base, b={n}, transformers (goal 0.9 on SmolLM2)", f"base, b={n}: transformers"),
        (f"mixed batch against the base, b={n}, engine", f"base, b={n}: engine"),
    ):  # fmt: skip
        print(f"| {title} | {mixed.by_cpu / best[other].by_cpu:.2f} | {mixed.by_wall / best[other].by_wall:.2f} |")
    one, peft = best["one adapter, b=1: engine"], best["one adapter, b=1: PEFT"]
    print(f"| one request, one adapter, against PEFT (goal 1) | {one.by_cpu / peft.by_cpu:.2f} | "
          f"{one.by_wall / peft.by_wall:.2f} |")  # fmt: skip


def agreement(theirs: Theirs, ours: Ours, loaded: LoadedModel, ids: torch.Tensor, n_tokens: int) -> None:
    """Print how many rows say what PEFT says, and how many of PEFT's choices are ties."""
    rows = theirs.gaps(ids, n_tokens)
    ours.run(list(range(len(ids))), n_tokens)
    n_same, notes = 0, []
    for row, ((tokens, gaps), said) in enumerate(zip(rows, ours.said, strict=True)):
        if said == loaded.decode(tokens):
            n_same += 1
            continue
        n = next(
            (n for n in range(len(tokens)) if not said.startswith(loaded.decode(tokens[: n + 1]))), len(tokens) - 1
        )
        notes.append(f"row {row} at token {n}, PEFT's two best {gaps[n]:.1e} apart")
    all_gaps = [gap for _, gaps in rows for gap in gaps]
    n_near = sum(gap < NEAR for gap in all_gaps)
    print(f"\nthe same greedy text as PEFT: {n_same} of {len(rows)} rows", *notes, sep="; ")
    print(f"choices within {NEAR:g}, where either is right: {n_near} of {len(all_gaps)} ({n_near / len(all_gaps):.2%})")


def hot_swap(theirs: Theirs, loaded: LoadedModel, folder: Path, n_rounds: int) -> None:
    """Print what it costs to bring a new adapter in."""
    from peft.utils.hotswap import hotswap_adapter

    n_bytes = (folder / "adapter_model.safetensors").stat().st_size
    taken: dict[str, list[float]] = {"engine": [], "PEFT hotswap_adapter": [], "PEFT load_adapter": []}
    for number in range(n_rounds):
        copy = shutil.copytree(folder, folder.with_name(f"swap-{number}"))
        for name, action in (
            ("engine", lambda copy=copy: loaded.adapters.stage(copy)),
            ("PEFT hotswap_adapter", lambda copy=copy: hotswap_adapter(theirs.model, str(copy), "1")),
            ("PEFT load_adapter", lambda copy=copy, n=number: theirs.model.load_adapter(copy, adapter_name=f"s{n}")),
        ):
            cpu_s = time.process_time()
            action()
            taken[name].append(time.process_time() - cpu_s)
        theirs.model.delete_adapter(f"s{number}")
    print(
        f"\na new adapter of {n_bytes / 1e6:.2f} MB, ready to answer (goal 100 ms of CPU at 9.8 MB), median:", end=" "
    )
    print(", ".join(f"{name} {statistics.median(times) * 1000:.0f} ms" for name, times in taken.items()))


class CpuClock:
    """CPU seconds of this process, and the idle ones that were skipped."""

    def __init__(self) -> None:
        self._began_s = time.process_time()
        self._skipped_s = 0.0

    def now_s(self) -> float:
        return time.process_time() - self._began_s + self._skipped_s

    def skip_to(self, at_s: float) -> None:
        self._skipped_s += max(0.0, at_s - self.now_s())


class Arrival(NamedTuple):
    at_s: float
    adapter: int
    start: int
    n_prompt: int
    n_tokens: int


def arrivals(n: int, per_s: float, n_tokens: int) -> list[Arrival]:
    chance = random.Random(7)
    at_s, out = 0.0, []
    for number in range(n):
        at_s += chance.expovariate(per_s)
        out.append(Arrival(at_s, chance.randrange(N_ADAPTERS), number, chance.choice((8, 16, 32, 64)), n_tokens))
    return out


Times = list[tuple[float, list[float]]]
"""Of each request, when it came, and when each of its tokens did."""


def serve_ours(
    loaded: LoadedModel, folders: list[Path], prompts: Callable[[Arrival], str], plan: list[Arrival]
) -> Times:
    batch = Batch(dataclasses.replace(loaded, end_tokens=frozenset()), Limits(1 << 30))
    clock, times, waiting = CpuClock(), [(arrival.at_s, []) for arrival in plan], list(enumerate(plan))
    while waiting or not batch.is_idle:
        if batch.is_idle:
            clock.skip_to(waiting[0][1].at_s)
        while waiting and waiting[0][1].at_s <= clock.now_s():
            n, arrival = waiting.pop(0)
            request = Generate(
                id=n + 1, text=prompts(arrival), adapter=str(folders[arrival.adapter]), max_tokens=arrival.n_tokens
            )
            batch.start(request, lambda reply: None, lambda: False)
        batch.step()
        for n, (_, made) in enumerate(times):
            sequence = batch._sequences.get(n + 1)
            n_made = len(sequence.ids) - sequence.n_prompt if sequence else plan[n].n_tokens if made else 0
            made += [clock.now_s()] * (n_made - len(made))
    return times


class Noting:
    """A streamer of transformers that notes when tokens come."""

    def __init__(self, clock: CpuClock) -> None:
        self._clock = clock
        self.times: list[float] = []
        self._has_prompt = False

    def put(self, value: torch.Tensor) -> None:
        if self._has_prompt:
            self.times.append(self._clock.now_s())
        self._has_prompt = True

    def end(self) -> None:
        pass


def serve_theirs(theirs: Theirs, loaded: LoadedModel, prompts: Callable[[Arrival], str], plan: list[Arrival]) -> Times:
    clock, times = CpuClock(), []
    for arrival in plan:
        clock.skip_to(arrival.at_s)
        theirs.model.set_adapter(str(arrival.adapter))
        streamer = Noting(clock)
        ids = torch.tensor([loaded.encode(prompts(arrival))])
        theirs._run(theirs.model, ids, arrival.n_tokens, streamer=streamer)
        times.append((arrival.at_s, streamer.times))
    return times


def under_load(theirs: Theirs, loaded: LoadedModel, folders: list[Path], n_requests: int, n_tokens: int) -> None:
    """Print the latencies at two rates of arrival."""
    ids = loaded.encode(json.dumps(json.__doc__) * 4)

    def prompt(arrival: Arrival) -> str:
        """Each begins elsewhere: nothing of one can be reused for another."""
        return loaded.decode(ids[arrival.start : arrival.start + arrival.n_prompt])

    cpu_s = time.process_time()
    serve_theirs(theirs, loaded, prompt, arrivals(4, 1e9, n_tokens))
    alone_s = (time.process_time() - cpu_s) / 4
    print(f"\n{n_requests} requests of {n_tokens} tokens, {N_ADAPTERS} adapters, arriving at random; one alone takes "
          f"PEFT {alone_s:.2f} s")  # fmt: skip
    print("\n| cpu ms | first token p50 | p99 | between tokens p50 | p99 | all done after s |")
    print("| --- | --- | --- | --- | --- | --- |")
    for load in (0.6, 1.5):
        plan = arrivals(n_requests, load / alone_s, n_tokens)
        print_latencies(f"PEFT one by one, load {load}", serve_theirs(theirs, loaded, prompt, plan))
        print_latencies(f"engine, the same arrivals ({load})", serve_ours(loaded, folders, prompt, plan))


def print_latencies(title: str, times: Times) -> None:
    first = sorted((made[0] - at_s) * 1000 for at_s, made in times)
    between = sorted((b - a) * 1000 for _, made in times for a, b in pairwise(made))
    figures = [quantile(first, 0.5), quantile(first, 0.99), quantile(between, 0.5), quantile(between, 0.99)]
    print(
        f"| {title} | " + " | ".join(f"{figure:.1f}" for figure in figures) + f" | {max(m[-1] for _, m in times):.2f} |"
    )


def quantile(ordered: list[float], frac: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * frac))]


@contextlib.contextmanager
def prepared(name: str) -> Iterator[tuple[LoadedModel, Theirs, list[Path]]]:
    folder = cached_model(name)
    loaded = load_model(folder)
    with tempfile.TemporaryDirectory(prefix="covey-bench-") as scratch:
        folders = [write_adapter(Path(scratch) / str(n), loaded.adapters, n) for n in range(N_ADAPTERS)]
        yield loaded, Theirs(folder, folders), folders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=tuple(SOURCES), default="tiny")
    parser.add_argument("--tokens", type=int, help="new tokens of each request")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--part", choices=("speed", "agreement", "swap", "load"), action="append")
    options = parser.parse_args()
    parts = options.part or ["speed", "agreement", "swap", "load"]
    n_tokens = options.tokens or {"tiny": 64, "smollm2": 24}[options.model]
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    print(f"{options.model}, {options.threads} thread(s), Python {platform.python_version()}, "
          f"torch {torch.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")  # fmt: skip
    with prepared(options.model) as (loaded, theirs, folders):
        ids = loaded.encode(TEXT * 4)[:24]
        rows = torch.tensor([ids[n:] + ids[:n] for n in range(N_ADAPTERS)])  # (8, 24)
        ours = Ours(loaded, folders, [loaded.decode(row.tolist()) for row in rows])
        rows = torch.tensor([loaded.encode(text) for text in ours._texts])
        if "speed" in parts:
            throughput(theirs, ours, rows, n_tokens, options.rounds)
        if "agreement" in parts:
            agreement(theirs, ours, loaded, rows, 2 * n_tokens)
        if "load" in parts:
            under_load(theirs, loaded, folders, {"tiny": 60, "smollm2": 16}[options.model], n_tokens)
        if "swap" in parts:
            hot_swap(theirs, loaded, folders[0], 5)


if __name__ == "__main__":
    sys.exit(main())
