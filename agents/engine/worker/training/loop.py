"""The loop: step, evaluate, keep a checkpoint, stop early; from the first step or from a checkpoint on.

What comes out is decided by the run, the environment and nothing else: not by when it was interrupted, how often, or
what was told of it on the way.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import torch
from torch import Tensor

from agents.engine.messages import TrainCheckpoint, TrainStep
from agents.engine.worker.models import LoadedModel
from agents.engine.worker.training import state as states
from agents.engine.worker.training.lowrank import LowRanks
from agents.engine.worker.training.noisy import add_noisy_gradients, check_settings
from agents.engine.worker.training.objective import Row, count_labels, preference_loss, token_loss
from agents.engine.worker.training.plan import Feed, Plan
from agents.errors import CannotResume, EngineFailed
from agents.training.runs import Checkpoint, Evaluation, Run, State
from agents.training.schedule import share
from agents.training.settings import ExampleNoise, FitSettings, Settings

MAX_CURVE_POINTS: Final = 1024
MAX_EVALUATIONS: Final = 65536
PACE_STEPS: Final = 20
"""Over so many of the last steps the pace is taken."""

Emit = Callable[[TrainStep | TrainCheckpoint], None]
IsCancelled = Callable[[], bool]


class Paused(Exception):
    """The user has had enough for now."""


@dataclass
class Progress:
    """Where the training stands; all of it is in every checkpoint."""

    step: int = 0
    n_tokens: int = 0
    loss_before: float = 0.0
    curve: list[tuple[int, float]] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    best_step: int | None = None
    best: Tensor | None = None


class Training:
    """A training under way.

    Args:
        run: what was asked; its settings decide everything.
        folder: where the checkpoints go.
        noise: hides each example; by chance, so that no two trainings come to the same then.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        run: Run,
        folder: Path,
        plan: Plan,
        environment: dict[str, str | int],
        noise: ExampleNoise | None = None,
    ) -> None:
        if run.settings.frozen and run.settings.weight_decay:
            raise EngineFailed("a half that is not learned must not decay either: leave weight_decay at 0")
        if noise is not None:
            check_settings(run.settings)
        self._noise = noise
        self._loaded = loaded
        self._run = run
        self._settings = run.settings
        self._folder = folder
        self._plan = plan
        self.environment = environment
        self._feed = Feed(plan.train, run.settings.seed)
        self._dtype: torch.dtype = loaded.model.dtype
        self._saved_step = -1
        self.checkpoint: Checkpoint | None = None
        self.progress = Progress()
        self.lora = LowRanks(loaded, run.settings)
        self._optimizer = make_optimizer([self.lora.flat], run.settings)
        self._base: Tensor | None = None
        self._correction: Tensor | None = None

    def resume(self, checkpoint: Checkpoint, state: State) -> None:
        """Go on where `checkpoint` was written. Raises: CannotResume."""
        if self._settings.proximal_mu:
            raise CannotResume("a training that is pulled to where it began is begun anew: no checkpoint has that")
        best = states.restore(checkpoint, self.lora, self._optimizer, self._loaded.device)
        self.progress = Progress(
            step=state.step,
            n_tokens=state.n_tokens,
            loss_before=state.loss_before,
            curve=list(state.curve),
            evaluations=list(state.evaluations),
            best_step=state.best_step,
            best=best,
        )
        self._saved_step, self.checkpoint = state.step, checkpoint

    def begin(self, is_cancelled: IsCancelled, initial: Path | None = None, correction: Path | None = None) -> None:
        """Take the loss before the first step, with the adapter that is given. Raises: Paused, BadAdapter.

        `correction`: a file of what is added to every gradient.
        """
        torch.manual_seed(self._settings.seed)
        if initial is not None:
            self.lora.read(initial)
        if self._settings.proximal_mu:
            self._base = self.lora.flat.detach().clone()
        if correction is not None:
            self._correction = self.lora.read_beside(correction)
        self.progress.loss_before = self._evaluate(is_cancelled)

    def go(self, emit: Emit, is_cancelled: IsCancelled) -> float:
        """Make the steps that are left; the loss after the last. Raises: Paused, with a checkpoint; EngineFailed."""
        try:
            self._steps(emit, is_cancelled)
        except Paused:
            self._keep(emit)
            raise
        self._keep(emit)
        return self._settle(is_cancelled)

    def _steps(self, emit: Emit, is_cancelled: IsCancelled) -> None:
        pace = Pace(self._plan.n_steps)
        progress = self.progress
        self._evaluate_if_due(is_cancelled)  # it may have been left in the middle of it
        while progress.step < self._plan.n_steps and not self._is_enough():
            check(is_cancelled)
            loss, n_labels, rate = self.step(is_cancelled)
            tokens_per_second, left_s = pace.note(progress.step, n_labels)
            told = TrainStep(
                step=progress.step,
                n_steps=self._plan.n_steps,
                loss=loss,
                learning_rate=rate,
                n_tokens=progress.n_tokens,
                tokens_per_second=tokens_per_second,
                left_s=left_s,
            )
            held_out_loss = self._evaluate_if_due(is_cancelled)
            emit(told if held_out_loss is None else _with(told, held_out_loss))
            if progress.step % self._settings.checkpoint_every == 0:
                self._keep(emit)

    def step(self, is_cancelled: IsCancelled) -> tuple[float, int, float]:
        """One optimizer step: its loss, what was learned from, and the learning rate."""
        settings, progress = self._settings, self.progress
        flat = self.lora.flat
        a_step = settings.batch * settings.accumulate
        if self._noise is not None:
            total, n_labels = self._add_noisy_gradients(self._noise, a_step, is_cancelled)
        else:
            rows = self._feed.take(progress.step * a_step, a_step)
            n_labels = max(1, count_labels(rows))
            total = self._add_gradients(rows, n_labels, is_cancelled)
        if settings.frozen:
            self.lora.still(settings.frozen)
        if self._base is not None:  # a half that is frozen has not moved
            flat.grad.add_(flat.detach() - self._base, alpha=settings.proximal_mu)
        if not torch.isfinite(flat.grad).all():
            raise EngineFailed(f"the loss is no longer finite at step {progress.step + 1}: lower the learning rate")
        norm = torch.linalg.vector_norm(flat.grad)
        flat.grad.mul_((settings.clip_norm / (norm + 1e-6)).clamp_(max=1.0))
        if self._correction is not None:
            flat.grad.add_(self._correction)
        rate = settings.learning_rate * share(settings.schedule, progress.step, self._plan.n_steps, settings.n_warmup)
        self._optimizer.param_groups[0]["lr"] = rate
        self._optimizer.step()
        flat.grad.zero_()
        progress.step += 1
        progress.n_tokens += n_labels
        every = -(-self._plan.n_steps // MAX_CURVE_POINTS)
        if progress.step % every == 0:
            progress.curve.append((progress.step, total))
        return total, n_labels, rate

    def _add_gradients(self, rows: Sequence[Row], n_labels: int, is_cancelled: IsCancelled) -> float:
        """The mean loss of the rows, whose gradients are added up. Raises: Paused, with nothing done."""
        chance = states.chance(self._loaded.device)
        total = 0.0
        try:
            for at in range(0, len(rows), self._settings.batch):
                check(is_cancelled)
                loss = self._loss(rows[at : at + self._settings.batch]) / n_labels
                loss.backward()
                total += float(loss.detach())
        except Paused:
            self.lora.flat.grad.zero_()
            states.put_chance(chance, self._loaded.device)
            raise
        return total

    def _add_noisy_gradients(self, noise: ExampleNoise, a_step: int, is_cancelled: IsCancelled) -> tuple[float, int]:
        rows = self._plan.train
        frozen, n_expected = self._settings.frozen, min(a_step, len(rows))
        return add_noisy_gradients(rows, n_expected, self.lora, noise, frozen, self._loss, partial(check, is_cancelled))

    def _loss(self, rows: Sequence[Row]) -> Tensor:
        model, device = self._loaded.model, self._loaded.device
        if any(example.worse for row in rows for example in row):
            return preference_loss(model, rows, device, self._dtype, self.lora.off, self._settings.dpo_beta)
        return token_loss(model, rows, device, self._dtype)

    def _evaluate(self, is_cancelled: IsCancelled) -> float:
        """The loss on what is held out, in nats a token or pair."""
        total, n_total = 0.0, 0
        rows = self._plan.held_out
        with torch.no_grad():
            for at in range(0, len(rows), self._settings.batch):
                check(is_cancelled)
                part = rows[at : at + self._settings.batch]
                total, n_total = total + float(self._loss(part)), n_total + count_labels(part)
        return total / max(1, n_total)

    def _evaluate_if_due(self, is_cancelled: IsCancelled) -> float | None:
        every, progress = self._settings.eval_every, self.progress
        if not every or not progress.step or progress.step % every:
            return None
        done = progress.evaluations
        if len(done) >= MAX_EVALUATIONS or (done and done[-1].step == progress.step):
            return None
        loss = self._evaluate(is_cancelled)
        best = min((done.loss for done in progress.evaluations), default=progress.loss_before)
        progress.evaluations.append(Evaluation(progress.step, loss))
        if self._settings.patience and loss < best - self._settings.min_gain:
            progress.best_step, progress.best = progress.step, self.lora.flat.detach().clone()
        return loss

    def _is_enough(self) -> bool:
        """Has the held-out loss not become better for too long?"""
        progress, patience = self.progress, self._settings.patience
        since = [done for done in progress.evaluations if done.step > (progress.best_step or 0)]
        return bool(patience) and len(since) >= patience

    def _settle(self, is_cancelled: IsCancelled) -> float:
        """Choose the parameters that stay; the loss with them."""
        progress = self.progress
        if self._settings.patience and progress.best is not None:
            with torch.no_grad():
                self.lora.flat.copy_(progress.best)
            return next(done.loss for done in progress.evaluations if done.step == progress.best_step)
        if progress.evaluations and progress.evaluations[-1].step == progress.step:
            return progress.evaluations[-1].loss
        return self._evaluate(is_cancelled)

    def _keep(self, emit: Emit) -> None:
        """Write a checkpoint, unless there is one of this step."""
        progress = self.progress
        if progress.step == self._saved_step or not progress.step:
            return
        state = State(
            run=self._run,
            step=progress.step,
            n_steps=self._plan.n_steps,
            n_examples=progress.step * self._settings.batch * self._settings.accumulate,
            n_tokens=progress.n_tokens,
            curve=progress.curve,
            evaluations=progress.evaluations,
            loss_before=progress.loss_before,
            best_step=progress.best_step,
            environment=self.environment,
        )
        kept = states.save(self._folder, state, self.lora, self._optimizer, progress.best, self._loaded.device)
        self._saved_step, self.checkpoint = progress.step, kept
        emit(TrainCheckpoint(step=kept.step, folder=str(kept.folder), cid=str(kept.cid)))


def make_optimizer(parameters: list[Tensor], settings: Settings | FitSettings) -> torch.optim.Optimizer:
    """What the settings name, over these."""
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=settings.momentum, weight_decay=decay)
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=rate, weight_decay=decay, fused=True)


class Pace:
    """How fast it goes, over the last steps."""

    def __init__(self, n_steps: int) -> None:
        self._n_steps = n_steps
        self._done: list[tuple[float, int]] = [(time.perf_counter(), 0)]

    def note(self, step: int, n_tokens: int) -> tuple[float, float]:
        """A step was made. Returns: tokens a second, and the seconds that the rest will take."""
        now_s = time.perf_counter()
        self._done = [*self._done[-PACE_STEPS:], (now_s, n_tokens)]
        took_s = max(1e-9, now_s - self._done[0][0])
        n_steps, n_done = len(self._done) - 1, sum(n for _, n in self._done[1:])
        return n_done / took_s, took_s / n_steps * (self._n_steps - step)


def check(is_cancelled: IsCancelled) -> None:
    """Raises: Paused, once the user has had enough."""
    if is_cancelled():
        raise Paused


def _with(told: TrainStep, held_out_loss: float) -> TrainStep:
    return msgspec.structs.replace(told, held_out_loss=held_out_loss)
