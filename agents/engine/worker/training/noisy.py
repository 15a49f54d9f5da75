"""Gradients that hide each example: one by one, shortened, added up with noise.

Source: Abadi et al., Deep learning with differential privacy (arXiv 1607.00133), algorithm 1.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from agents.engine.worker.training.lowrank import LowRanks
from agents.engine.worker.training.objective import Row, count_labels
from agents.errors import EngineFailed
from agents.federation.privacy.examples import NoisySum, taken
from agents.training.settings import ExampleNoise, Settings


def check_settings(settings: Settings) -> None:
    """Raises: EngineFailed for what would tell of examples beside the noise, or count them otherwise."""
    if settings.pack:
        raise EngineFailed("noise hides single examples: leave out pack, which learns from several as one")
    if settings.patience:
        raise EngineFailed("the loss on held-out examples is told without noise: nothing may be chosen by it")


def add_noisy_gradients(
    rows: Sequence[Row],
    n_expected: int,
    lora: LowRanks,
    noise: ExampleNoise,
    frozen: str,
    loss_of: Callable[[Sequence[Row]], Tensor],
    check: Callable[[], None],
) -> tuple[float, int]:
    """Leave a noisy mean of single examples' gradients where the optimizer finds it.

    It is divided by the number that is expected: how many were taken is a secret. Returns: the mean loss of those that
    were, for the own user alone, and what was learned from. Raises: Paused, with nothing done.
    """
    grad = lora.flat.grad
    total = NoisySum(grad.numel(), noise)
    losses, n_labels = [], 0
    try:
        for place in taken(n_expected, len(rows)):
            check()
            grad.zero_()
            n_of_row = max(1, count_labels([rows[place]]))
            loss = loss_of([rows[place]]) / n_of_row
            loss.backward()
            if frozen:
                lora.still(frozen)
            total.add(grad.cpu().numpy()[None])
            losses.append(float(loss.detach()))
            n_labels += n_of_row
    except BaseException:
        grad.zero_()
        raise
    grad.copy_(torch.from_numpy(total.told() / n_expected))
    return sum(losses) / max(1, len(losses)), n_labels
