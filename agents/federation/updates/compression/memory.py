"""What a participant's codec left out so far, on its disk: `<round>.memory`, a file of little-endian float32.

A round's file is written before its update is submitted, and read by the rounds after it alone: who is killed, and
trains again, adds the same and submits the same bytes.

storage/FORMAT.md, "Rounds", has its bytes.
"""

from pathlib import Path
from typing import Final

import numpy as np

from agents.aggregation.updates import Vector
from agents.federation.updates.compression.codec import Codec
from agents.federation.updates.compression.registry import codec_of
from agents.federation.updates.tensors import Layout, read_layout, read_vector
from protocols.rounds import Plan
from storage.durable import make_folder, write_file

SUFFIX: Final = ".memory"
N_KEPT: Final = 2


class Memory:
    """The files of one experiment, in a folder of theirs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def encode(self, number: int, codec: Codec, vector: Vector, layout: Layout) -> bytes:
        """The bytes to submit in a round; what they leave out is durable when this returns.

        Raises: CannotAggregate, StoreFull, OSError.
        """
        memory = self.before(number, layout.n_params)
        data = codec.encode(vector, layout, memory)
        make_folder(self._folder)
        write_file(self._folder / f"{number:08d}{SUFFIX}", memory.astype("<f4").tobytes())
        for old in self._files()[N_KEPT:]:
            old.unlink(missing_ok=True)
        return data

    def before(self, number: int, n_params: int) -> Vector:
        """What was left out before a round; zeros where nothing was, or its file is damaged."""
        for path in self._files():
            if int(path.stem) < number and path.stat().st_size == 4 * n_params:
                found = np.frombuffer(path.read_bytes(), "<f4").astype(np.float32)
                if np.isfinite(found).all():
                    return found
        return np.zeros(n_params, np.float32)

    def _files(self) -> list[Path]:
        """The last round's first."""
        return sorted((path for path in self._folder.glob(f"*{SUFFIX}") if path.stem.isdecimal()), reverse=True)


def encoded(plan: Plan, folder: Path, number: int, path: Path) -> Path:
    """The file of an update as it is submitted: as it is, or as the plan's codec writes it. Raises: OSError."""
    if plan.compression is None:
        return path
    layout = read_layout(path)
    vector = np.array(read_vector(path, layout))
    data = Memory(folder).encode(number, codec_of(plan.compression), vector, layout)
    found = path.with_name("encoded")
    found.write_bytes(data)
    return found
