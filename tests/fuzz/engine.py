"""What scripts/fuzz runs: real inputs, mutated, fed to a machine in episodes; what was found is made small and kept as a file.

A machine is a part of ptunnel with all that stands behind its decoders.  Its inputs are bytes, whatever they stand for; an
episode is a fresh world and some hundred of them.  It depends on nothing but its seed and its inputs, so that a case is both.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

CASES: Final = Path(__file__).parent / "cases"
SLOW: Final = 2.0  # seconds of processor for one input: whoever sends such stops us
MINIMISE: Final = 20.0  # seconds for making a case small
KEPT: Final = 3 / 10  # of the inputs are real ones, so that the world gets on
_NUMBERS: Final = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x100,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x10000,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63,
    2**64 - 1,
)


class Episode(Protocol):
    """One world."""

    def feed(self, data: bytes) -> None:
        """One input.  Raises for a finding, and for nothing else."""

    def end(self) -> None:
        """No more inputs: look at the bounds.  Raises for a finding."""


@dataclass(frozen=True)
class Machine:
    """`corpus` gives real inputs; `begin(seed)` a world; `length` inputs are an episode."""

    name: str
    corpus: Callable[[], list[bytes]]
    begin: Callable[[int], Episode]
    length: int = 400


@dataclass(frozen=True)
class Case:
    """What led to something."""

    machine: str
    seed: int
    inputs: tuple[bytes, ...]

    def write(self, folder: Path, name: str) -> Path:
        path = folder / f"{name}.case"
        path.write_text("\n".join([f"{self.machine} {self.seed}", *(each.hex() for each in self.inputs), ""]), encoding="ascii")
        return path

    @classmethod
    def read(cls, path: Path) -> Case:
        head, *lines = path.read_text(encoding="ascii").splitlines()
        name, seed = head.split()
        return cls(name, int(seed), tuple(bytes.fromhex(line) for line in lines if not line.startswith("#")))


class Mutator:
    """Changes real inputs a little, or much."""

    def __init__(self, rng: random.Random, corpus: Sequence[bytes]) -> None:
        self._rng = rng
        self._corpus = corpus

    def next(self) -> bytes:
        rng = self._rng
        data = rng.choice(self._corpus)
        if rng.random() < KEPT:
            return data
        out = bytearray(data)
        for _ in range(1 + int(rng.expovariate(0.8))):
            self._change(out)
        return bytes(out)

    def _change(self, out: bytearray) -> None:
        rng, size = self._rng, len(out)
        at = rng.randrange(size + 1)
        match rng.randrange(10):
            case 0 | 1 if size > at:
                out[at] ^= 1 << rng.randrange(8)
            case 2 if size > at:
                out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 3:
                out[at:at] = rng.randbytes(rng.choice((1, 1, 2, 4, 8, 33)))
            case 4:
                del out[at : at + rng.choice((1, 1, 2, 4, 8, 64))]
            case 5:
                del out[at:]
            case 6:
                width = rng.choice((1, 2, 2, 4, 4, 8))
                number = rng.choice(_NUMBERS) if rng.random() < 0.7 else rng.getrandbits(64)
                out[at : at + width] = (number & ((1 << 8 * width) - 1)).to_bytes(width, rng.choice(("big", "big", "little")))
            case 7:
                piece = out[at : at + rng.randrange(1, 40)]
                out[at:at] = piece * rng.choice((1, 1, 2, 30))
            case 8:
                other = rng.choice(self._corpus)
                start = rng.randrange(len(other) + 1)
                out[at:] = other[start:]
            case _:
                other = rng.choice(self._corpus)
                start = rng.randrange(len(other) + 1)
                out[at : at + 8] = other[start : start + 8]


class Finding(Exception):
    """Raised by run() with the case and what was raised."""

    def __init__(self, case: Case, error: BaseException) -> None:
        super().__init__(f"{case.machine}: {type(error).__name__}: {error}")
        self.case = case
        self.error = error


def replay(machine: Machine, case: Case) -> None:
    """Raises what the case leads to, if it still does."""
    episode = machine.begin(case.seed)
    for data in case.inputs:
        _feed(episode, data)
    episode.end()


def _feed(episode: Episode, data: bytes) -> None:
    begun = time.process_time()
    episode.feed(data)
    took = time.process_time() - begun
    assert took < SLOW, f"one input took {took:.1f} s of processor"


def run_episode(machine: Machine, seed: int, corpus: Sequence[bytes], length: int | None = None) -> int:
    """How many inputs it had.  Raises Finding."""
    rng = random.Random(f"{machine.name} {seed}")
    mutator = Mutator(rng, corpus)
    inputs: list[bytes] = []
    try:
        episode = machine.begin(seed)
        for _ in range(machine.length if length is None else length):
            inputs.append(mutator.next())
            _feed(episode, inputs[-1])
        episode.end()
    except Exception as error:
        raise Finding(Case(machine.name, seed, tuple(inputs)), error) from error
    return len(inputs)


def signature(error: BaseException) -> tuple[str, str, int]:
    """What tells one finding from another: the kind, and the line that raised."""
    trace = error.__traceback__
    where, line = "", 0
    while trace is not None:
        where, line = trace.tb_frame.f_code.co_filename, trace.tb_lineno
        trace = trace.tb_next
    return type(error).__name__, where, line


def minimise(machine: Machine, case: Case, error: BaseException, patience: float = MINIMISE) -> Case:
    """The same finding with fewer and shorter inputs, as far as that is cheap."""
    wanted, ends = signature(error), time.monotonic() + patience

    def is_same(inputs: Sequence[bytes]) -> bool:
        try:
            replay(machine, Case(case.machine, case.seed, tuple(inputs)))
        except Exception as found:
            return signature(found) == wanted
        return False

    inputs = list(case.inputs)
    if not is_same(inputs):
        return case  # as of a world that is not the same twice: better whole than wrong
    chunk = max(1, len(inputs) // 2)
    while time.monotonic() < ends:
        at, is_smaller = 0, False
        while at < len(inputs) and time.monotonic() < ends:
            shorter = inputs[:at] + inputs[at + chunk :]
            if is_same(shorter):
                inputs, is_smaller = shorter, True
            else:
                at += chunk
        if chunk == 1 and not is_smaller:
            break
        chunk = max(1, chunk // 2)
    for index in range(len(inputs)):
        size = len(inputs[index]) // 2
        while size and time.monotonic() < ends:
            for at in range(0, len(inputs[index]), size):
                shorter = list(inputs)
                shorter[index] = inputs[index][:at] + inputs[index][at + size :]
                if is_same(shorter):
                    inputs = shorter
                    break
            else:
                size //= 2
    return Case(case.machine, case.seed, tuple(inputs))
