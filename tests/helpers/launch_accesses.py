"""What the programs of one launch load and store, and which of it may meet in another order than it did.

A program's clock says, of every other program, up to which of its barriers all that it did happened before.
Clocks pass through memory as Triton orders it: a barrier, then an atomic operation that releases; later, in
another program, an atomic operation on the same element that acquires.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LOAD, STORE, ATOMIC = range(3)
ALL_LANES = -1  # what has no lanes is loaded by all threads and stored by one


class Region(NamedTuple):
    """Memory of one argument, in bytes, or of several that overlap."""

    begin: int
    end: int
    itemsize: int
    name: str


class _Access(NamedTuple):
    kind: int
    addresses: np.ndarray
    mask: np.ndarray
    program: int
    epoch: int
    clock: int

    def lanes(self) -> np.ndarray:
        """Of each address; of a tensor of another size, the same lane is another thread's."""
        if self.mask.size == 1:
            return np.array([ALL_LANES])
        return np.flatnonzero(self.mask) + (self.mask.size << 32)


def _merged(regions: Sequence[Region]) -> list[Region]:
    """In the order of addresses, each apart from the others."""
    found: list[Region] = []
    for region in sorted(regions):
        if found and region.begin < found[-1].end:
            found[-1] = found[-1]._replace(end=max(found[-1].end, region.end))
        else:
            found.append(region)
    return found


class Accesses:
    """Of one launch, told as they happen; :meth:`findings` says what is wrong with them."""

    def __init__(self, regions: Sequence[Region], programs: int) -> None:
        self._regions = _merged(regions)
        self._begins = [region.begin for region in self._regions]
        self._logs: list[list[_Access]] = [[] for _ in self._regions]
        self._changed = [False] * len(self._regions)
        self._found: dict[str, tuple[int, str]] = {}
        self._program = -1
        self._epoch = 0  # counts beginnings of programs and barriers, of all programs together
        self._clocks = [np.zeros(programs, np.int64)]  # the epoch of each program up to which it is known
        self._clock = 0
        self._released: dict[int, np.ndarray] = {}  # by the address of the atomic operation

    def begin_program(self, program: int) -> None:
        """What follows is done by this one."""
        self._program, self._clock = program, 0
        self._epoch += 1

    def barrier(self) -> None:
        """All threads of the program arrive."""
        self._epoch += 1

    def access(self, kind: int, addresses: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """A load or a store at ``addresses`` where ``mask``; returns where there is memory of arguments."""
        active = addresses.ravel() if mask.all() else addresses[mask]
        if not active.size:
            return mask
        place = bisect_right(self._begins, int(active.min())) - 1
        if place >= 0 and int(active.max()) < self._regions[place].end:
            self._log(kind, place, active, mask)
            return mask
        places, kept = self._found_places(kind, addresses, mask)
        self._log_places(kind, places, addresses, kept)
        return kept

    def atomic(self, addresses: np.ndarray, mask: np.ndarray, acquires: bool, releases: bool) -> np.ndarray:
        """An atomic operation; returns what :meth:`access` does."""
        places, kept = self._found_places(ATOMIC, addresses, mask)
        for address in np.unique(addresses[kept]).tolist():
            before = self._released.get(address)
            if acquires and before is not None:
                self._clocks.append(np.maximum(self._clocks[self._clock], before))
                self._clock = len(self._clocks) - 1
            if releases:
                known = self._clocks[self._clock].copy()
                known[self._program] = self._epoch
                self._released[address] = known if before is None else np.maximum(before, known)
        self._log_places(ATOMIC, places, addresses, kept, releases)
        return kept

    def _log(self, kind: int, place: int, active: np.ndarray, mask: np.ndarray) -> None:
        self._changed[place] |= kind != LOAD
        self._logs[place].append(_Access(kind, active, mask, self._program, self._epoch, self._clock))

    def _log_places(
        self, kind: int, places: np.ndarray, addresses: np.ndarray, kept: np.ndarray, releases: bool = False
    ) -> None:
        for place in np.unique(places[kept]).tolist():
            here = kept & (places == place)
            self._log(kind, place, addresses[here], here)
            if releases:  # who acquires knows of the operation that released, too
                log = self._logs[place]
                log[-1] = log[-1]._replace(epoch=self._epoch - 1)

    def _found_places(
        self, kind: int, addresses: np.ndarray, mask: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The region of each address, and where there is one."""
        places = np.searchsorted(np.array(self._begins, np.uint64), addresses, side="right") - 1
        kept = mask & (places >= 0)
        ends = np.array([region.end for region in self._regions], np.uint64)
        kept[kept] = addresses[kept] < ends[places[kept]]
        beside = mask & ~kept
        if beside.any():
            what = ("loaded from", "stored to", "changed in")[kind]
            first = int(addresses[beside][0])
            self._add(f"{what} memory that is no argument's", int(beside.sum()), self._nearest(first))
        return places, kept

    def _nearest(self, address: int) -> str:
        def distance(place: int) -> int:
            region = self._regions[place]
            return max(region.begin - address, address - region.end)

        places = range(len(self._regions))
        return self._name(min(places, key=distance), address) if places else "any"

    def _name(self, place: int, address: int) -> str:
        region = self._regions[place]
        return f"{region.name}[{(address - region.begin) // region.itemsize}]"

    def _add(self, what: str, count: int, example: str) -> None:
        before, first = self._found.get(what, (0, example))
        self._found[what] = (before + count, first)

    def findings(self) -> list[str]:
        """What is wrong: how many elements, what, and the first of them."""
        for place, log in enumerate(self._logs):
            if self._changed[place]:
                self._compare(place, log)
        return [
            f"{count} element{'' if count == 1 else 's'} {what}, {first} first"
            for what, (count, first) in self._found.items()
        ]

    def _compare(self, place: int, log: list[_Access]) -> None:
        """Looks for accesses to one element of which neither is known to happen first."""
        address = np.concatenate([access.addresses for access in log])
        order = np.argsort(address, kind="stable")
        address = address[order]
        same = np.concatenate(([False], address[1:] == address[:-1], [False]))
        several = same[1:] | same[:-1]
        if not several.any():
            return
        address, order = address[several], order[several]
        sizes = [access.addresses.size for access in log]
        lane = np.concatenate([access.lanes() for access in log])[order]
        event = np.repeat(np.arange(len(log)), sizes)[order]
        kind, program, epoch, clock = (
            np.array([getattr(access, name) for access in log])[event]
            for name in ("kind", "program", "epoch", "clock")
        )
        earlier, later = _pairs(kind, np.cumsum(~same[:-1][several]))
        a, b = kind[earlier], kind[later]
        loads, atomics = ((a == wanted) | (b == wanted) for wanted in (LOAD, ATOMIC))
        others = program[earlier] != program[later]
        known = np.stack(self._clocks)[clock[later], program[earlier]]
        unordered = others & (known <= epoch[earlier])
        # Within a program: between two barriers an element is one thread's.
        shared = (lane[earlier] != lane[later]) | (loads & (lane[later] == ALL_LANES))
        unordered |= ~others & ~atomics & shared & (epoch[earlier] == epoch[later])
        for what, which in (
            ("stored to by two programs", others & ~loads & ~atomics),
            ("stored to by one program and loaded by another", others & loads & ~atomics),
            ("changed atomically by one program and otherwise used by another", others & atomics),
            ("stored to by two lanes", ~others & ~loads),
            ("stored to and loaded by a program without a barrier between", ~others & loads),
        ):
            found = np.unique(address[later[which & unordered]])
            if found.size:
                self._add(what, found.size, self._name(place, int(found[0])))


def _pairs(kind: np.ndarray, element: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each access with the last store and atomic operation before it, each load with the next of either.

    Args:
        kind: of each access, in the order of elements, those of one in the order in which they happened.
        element: the number of the element.
    """
    count = kind.size
    places = np.arange(count)

    def before(wanted: int) -> np.ndarray:
        last = np.maximum.accumulate(np.where(kind == wanted, places, -1))
        return np.concatenate(([-1], last[:-1]))

    next_change = np.minimum.accumulate(np.where(kind != LOAD, places, count)[::-1])[::-1]
    after = np.concatenate((next_change[1:], [count]))
    earlier = np.concatenate((before(STORE), before(ATOMIC), places[kind == LOAD]))
    later = np.concatenate((places, places, after[kind == LOAD]))
    real = (earlier >= 0) & (later < count)
    earlier, later = earlier[real], later[real]
    real = (element[earlier] == element[later]) & ~((kind[earlier] == ATOMIC) & (kind[later] == ATOMIC))
    return earlier[real], later[real]
