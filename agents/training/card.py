"""The model card of an adapter: facts from its record, and nothing that nobody measured."""

import json
from collections.abc import Mapping
from typing import Any, Final

from agents.training.runs import Run

CARD_FILE: Final = "README.md"
_FORMS: Final = {
    "chat": "chats, learning the assistant's words",
    "instruction": "instructions, learning the outputs",
    "completion": "prompts, learning the completions",
    "preference": "preferences (DPO, against the model without the adapter)",
    "text": "text",
}


def model_card(run: Run, record: Mapping[str, Any]) -> str:
    """The card as Markdown with the front matter that model hubs read."""
    settings = run.settings
    kind = "rsLoRA" if settings.use_rslora else "LoRA"
    unit = settings.unit
    rows = "\n".join(f"| {name} | {value} |" for name, value in _table(run, record))
    return f"""---
library_name: peft
base_model: {json.dumps(run.model)}
tags: [lora]
---
# {run.name}

A {kind} adapter (rank {settings.rank}, alpha {settings.alpha:g}, on {", ".join(sorted(settings.targets))}) for
{run.model}, base fingerprint `{run.base}`.

Trained on {_FORMS[settings.form or "text"]}: {record["n_examples"]} examples of `{run.data_name}`.
Loss on {record["n_held_out"]} examples that were held out, in nats a {unit}: {record["loss_before"]:.4f} before,
{record["loss_after"]:.4f} after.

| | |
|---|---|
{rows}

Everything else that is needed to do it again is in `training.json`. What it is good for, and where it fails, was not
measured beyond that loss.
"""


def _table(run: Run, record: Mapping[str, Any]) -> list[tuple[str, object]]:
    settings = run.settings
    environment = record["environment"]
    return [
        ("data", f"`{run.data}`"),
        ("steps", record["n_steps"]),
        ("adapter of step", record["best_step"]),
        ("checkpoint", f"`{record['checkpoint']}`"),
        ("learned from", f"{record['n_tokens']} {settings.unit}s"),
        ("rows a step", settings.batch * settings.accumulate),
        ("context", f"{settings.context_tokens} tokens{', packed' if settings.pack else ''}"),
        ("learning rate", f"{settings.learning_rate:g}, {settings.schedule}, {settings.n_warmup} steps of warm-up"),
        ("weight decay", f"{settings.weight_decay:g}"),
        ("dropout", f"{settings.dropout:g}"),
        ("precision", environment["precision"]),
        ("seed", settings.seed),
        ("programs", f"Covey {environment['covey']}, torch {environment['torch']}, Python {environment['python']}"),
        ("machine", f"{environment['cpu']}, {environment['threads']} threads, {environment['device']}"),
    ]
