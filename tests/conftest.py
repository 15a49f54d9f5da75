"""Fixtures that more than one area of the tests needs."""

from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import MockClock

from simulations.net import SimWorld, open_world


@pytest.fixture
async def sim_world() -> AsyncIterator[SimWorld]:
    """A simulated network; `sim_world.node(Identity.generate().peer_id)` is a node's port.

    A test asks for `autojump_clock` beside it: pytest-trio looks for a clock among a test's own arguments only.
    """
    assert isinstance(trio.lowlevel.current_clock(), MockClock), "let the test take autojump_clock too"
    async with open_world(seed=1) as world:
        yield world
