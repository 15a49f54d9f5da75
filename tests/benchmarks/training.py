"""How fast a LoRA learns: `python -m tests.benchmarks.training [--model FOLDER]`.

Covey's step beside a plain loop of PEFT and torch, on the same model, rows and settings, turn by turn in one process,
in CPU seconds of one thread. Both end with the same loss, or the comparison says so. Once on text, where every token is
learned, once on chats, where a fifth of them is. The model is the tiny one of the tests unless another is named.
"""

import argparse
import json
import math
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import peft
import torch
import transformers

from agents.engine.texts import python_reference
from agents.engine.worker.models import load_model
from agents.engine.worker.training.loop import Training
from agents.engine.worker.training.objective import count_labels
from agents.engine.worker.training.train import _plan
from agents.training import runs
from agents.training.schedule import share
from agents.training.settings import Settings
from tests.models import cached_model

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def text() -> tuple[str, bytes]:
    """Prose, of which every token is learned."""
    return "text.txt", python_reference()[:120_000].encode()


def chats() -> tuple[str, bytes]:
    """Long questions with short answers."""
    words = python_reference().split()
    lines = []
    for at in range(0, 120 * 60, 60):
        turns = [("user", " ".join(words[at : at + 36])), ("assistant", " ".join(words[at + 36 : at + 46]))]
        lines.append(json.dumps({"messages": [{"role": role, "content": said} for role, said in turns]}))
    return "chats.jsonl", "\n".join(lines).encode()


class Ours:
    """Covey's own step."""

    def __init__(self, folder: Path, scratch: Path, settings: Settings, data: tuple[str, bytes]) -> None:
        name, content = data
        form = "chat" if name.endswith("jsonl") else "text"
        settings = Settings(**{**settings_of(settings), "form": form})
        run = runs.Run(name="bench", model="m", base="", trained_on="", data="", data_name=name, settings=settings)
        runs.begin(scratch / name, run, content)
        loaded = load_model(folder)
        self.plan, _, _ = _plan(loaded, run, scratch / name)
        self.training = Training(loaded, run, scratch / name, self.plan, {})

    def step(self) -> tuple[float, int]:
        """The loss, and how many tokens were read."""
        loss, n_labels, _ = self.training.step(lambda: False)
        return loss, n_labels


def settings_of(settings: Settings) -> dict[str, Any]:
    """As keywords."""
    return {name: getattr(settings, name) for name in settings.__struct_fields__}


class Theirs:
    """PEFT's model in the loop that its documentation shows, on the very rows that ours takes."""

    def __init__(self, folder: Path, settings: Settings, ours: Ours) -> None:
        base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        config = peft.LoraConfig(
            r=settings.rank, lora_alpha=settings.alpha, target_modules=list(settings.targets), task_type="CAUSAL_LM"
        )
        self.model = peft.get_peft_model(base, config).train()
        peft.set_peft_model_state_dict(self.model, ours.training.lora.tensors())
        self.params = [param for param in self.model.parameters() if param.requires_grad]
        self.optimizer = torch.optim.AdamW(self.params, lr=settings.learning_rate, weight_decay=0.0)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: share(settings.schedule, step, ours.plan.n_steps, settings.n_warmup)
        )
        self.settings = settings
        self.feed = type(ours.training._feed)(ours.plan.train, settings.seed)
        self.n_done = 0

    def step(self) -> tuple[float, int]:
        """The loss, and how many tokens were read."""
        rows = self.feed.take(self.n_done * self.settings.batch, self.settings.batch)
        self.n_done += 1
        width = max(len(row[0].tokens.ids) for row in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        labels = torch.full((len(rows), width), -100)
        mask = torch.zeros(len(rows), width, dtype=torch.long)
        for at, (example,) in enumerate(rows):
            n = len(example.tokens.ids)
            ids[at, :n] = torch.tensor(example.tokens.ids)
            labels[at, :n] = torch.tensor(example.tokens.labels)
            mask[at, :n] = 1
        loss = self.model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.params, self.settings.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return float(loss.detach()), count_labels(rows)


def timed(step: Callable[[], tuple[float, int]], n_steps: int) -> tuple[float, float]:
    """CPU seconds of some steps, and the loss of the last."""
    began = time.process_time()
    for _ in range(n_steps):
        loss, _ = step()
    return time.process_time() - began, loss


def compare(folder: Path, scratch: Path, data: tuple[str, bytes], targets: tuple[str, ...], asked: Any) -> None:
    """Print one line for a kind of data and set of layers."""
    settings = Settings(
        targets=targets,
        context_tokens=asked.context,
        batch=4,
        n_steps=(asked.rounds + 1) * asked.steps,
        learning_rate=1e-3,
    )
    ours = Ours(folder, scratch, settings, data)
    theirs = Theirs(folder, settings, ours)
    timed(ours.step, asked.steps), timed(theirs.step, asked.steps)  # to warm up
    rounds = []
    for _ in range(asked.rounds):
        (one_s, one), (other_s, other) = timed(ours.step, asked.steps), timed(theirs.step, asked.steps)
        rounds.append((one_s, other_s))
    n_tokens = settings.batch * asked.steps * asked.context
    ratio = statistics.median(other_s / one_s for one_s, other_s in rounds)
    ours_s, theirs_s = (statistics.median(taken) for taken in zip(*rounds, strict=True))
    same = "the same loss" if math.isclose(one, other, rel_tol=2e-3) else f"losses {one:.4f} and {other:.4f}"
    print(
        f"  {data[0]:12s} {len(targets)} kinds of layer: {n_tokens / ours_s:8,.0f} tokens/cpu-s, PEFT loop "
        f"{n_tokens / theirs_s:8,.0f}; ratio {ratio:.2f}; {same}",
        flush=True,
    )


def main() -> None:
    """Print the machine and the comparisons."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, help="the folder of an imported model; the tiny one unless given")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="steps a round")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    asked.model = asked.model or cached_model("tiny")
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; torch {torch.__version__}, "
        f"transformers {transformers.__version__}, peft {peft.__version__}; {asked.model.name}, rank 8, 4 x "
        f"{asked.context} tokens a step, fp32",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as scratch:
        for n, targets in enumerate((("q_proj", "v_proj"), ALL)):
            for data in (text(), chats()):
                compare(asked.model, Path(scratch) / str(n), data, targets, asked)


if __name__ == "__main__":
    main()
