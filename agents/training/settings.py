"""What decides how a training goes: the knobs, with their bounds and usual values."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Form = Literal["chat", "instruction", "completion", "preference", "text"]
Schedule = Literal["constant", "linear", "cosine"]
Precision = Literal["auto", "fp32", "bf16"]
Optimizer = Literal["adamw", "adam", "sgd"]

DEFAULT_STEPS = 30


class ExampleNoise(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Noise in a training, that hides single examples: the bound of each gradient's norm, and the noise of a sum's
    values, as deviation over bound. See `agents.federation.privacy.examples`.
    """

    bound: Annotated[float, Meta(gt=0.0, le=1e9)]
    multiplier: Annotated[float, Meta(gt=0.0, le=1e4)]


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that decides the result but the model and the data.

    `form` is the data's own where it is None. A step learns from `batch` times `accumulate` rows; `pack` fills the rows
    with several examples, each of which sees itself alone. Without `n_steps` and `n_epochs` there are 30 steps.
    `precision` auto is fp32 on a CPU, else bf16; `is_thrifty` computes layers twice to save their memory. The held-out
    loss is taken every `eval_every` steps (0: before and after), on at most `n_eval` examples; where `patience`
    evaluations in a row did not better it by `min_gain`, the training ends with the best adapter.
    What is held out follows from `split_seed`, or from `seed` where that is None. `frozen` is the half of each low-rank
    layer that stays as it begins. `proximal_mu` pulls parameters to where they began: mu/2 of the squared distance is
    part of the loss that is gone down, and not of the one that is told.
    """

    form: Form | None = None
    stratify: Annotated[str, Meta(max_length=64)] = ""
    skip_bad: bool = False
    rank: Annotated[int, Meta(ge=1, le=1024)] = 8
    alpha: Annotated[float, Meta(gt=0.0, le=65536.0)] = 16.0
    targets: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=128)], ...], Meta(min_length=1, max_length=64)
    ] = (
        "q_proj",
        "v_proj",
    )
    use_rslora: bool = False
    dropout: Annotated[float, Meta(ge=0.0, lt=1.0)] = 0.0
    n_steps: Annotated[int, Meta(ge=1, le=10_000_000)] | None = None
    n_epochs: Annotated[float, Meta(gt=0.0, le=10_000.0)] | None = None
    batch: Annotated[int, Meta(ge=1, le=4096)] = 4
    accumulate: Annotated[int, Meta(ge=1, le=4096)] = 1
    context_tokens: Annotated[int, Meta(ge=8, le=1 << 20)] = 64
    pack: bool = False
    learning_rate: Annotated[float, Meta(gt=0.0, le=1.0)] = 2e-3
    schedule: Schedule = "cosine"
    n_warmup: Annotated[int, Meta(ge=0, le=1_000_000)] = 3
    frozen: Literal["", "a", "b"] = ""
    optimizer: Optimizer = "adamw"
    momentum: Annotated[float, Meta(ge=0.0, lt=1.0)] = 0.0
    proximal_mu: Annotated[float, Meta(ge=0.0, le=1000.0)] = 0.0
    weight_decay: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    clip_norm: Annotated[float, Meta(gt=0.0, le=1e6)] = 1.0
    precision: Precision = "auto"
    is_thrifty: bool = False
    dpo_beta: Annotated[float, Meta(gt=0.0, le=100.0)] = 0.1
    held_out_frac: Annotated[float, Meta(gt=0.0, le=0.5)] = 0.1
    n_eval: Annotated[int, Meta(ge=1, le=100_000)] = 64
    eval_every: Annotated[int, Meta(ge=0, le=10_000_000)] = 0
    patience: Annotated[int, Meta(ge=0, le=10_000)] = 0
    min_gain: Annotated[float, Meta(ge=0.0, le=100.0)] = 0.0
    checkpoint_every: Annotated[int, Meta(ge=1, le=10_000_000)] = 20
    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] = 0
    split_seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] | None = None

    @property
    def splits_by(self) -> int:
        """What is held out follows from this."""
        return self.seed if self.split_seed is None else self.split_seed

    @property
    def unit(self) -> Literal["token", "pair"]:
        """What losses are told for, and what is counted: a token, or of preferences a pair of answers."""
        return "pair" if self.form == "preference" else "token"


def count_steps(settings: Settings, n_rows: int) -> int:
    """How many steps there are, where the data makes `n_rows` rows to learn from."""
    if settings.n_epochs is None:
        return settings.n_steps or DEFAULT_STEPS
    a_pass = max(1, -(-n_rows // (settings.batch * settings.accumulate)))
    n_steps = max(1, round(settings.n_epochs * a_pass))
    return min(n_steps, settings.n_steps or n_steps)


class FitSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What decides how a torch module is trained on rows of inputs and labels, but the module and the rows.

    `proximal_mu`: see `Settings`. Every step has the same rate. What is held out is the same whatever the seed.
    """

    loss: Literal["cross_entropy", "mse"] = "cross_entropy"
    n_steps: Annotated[int, Meta(ge=1, le=1_000_000)] = 30
    batch: Annotated[int, Meta(ge=1, le=1 << 16)] = 32
    optimizer: Optimizer = "sgd"
    learning_rate: Annotated[float, Meta(gt=0.0, le=100.0)] = 0.05
    momentum: Annotated[float, Meta(ge=0.0, lt=1.0)] = 0.0
    weight_decay: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    proximal_mu: Annotated[float, Meta(ge=0.0, le=1000.0)] = 0.0
    held_out: Annotated[float, Meta(ge=0.0, le=0.5)] = 0.1
    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] = 0
