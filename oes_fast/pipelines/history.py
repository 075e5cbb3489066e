"""What a run records while it goes on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, overload

import torch
from torch import Tensor


class Record(NamedTuple):
    """One recorded step.

    Attributes:
        step: number of updates made before the output was computed.
        loss: the objective at that step.
        psnr: of the output against the clean image in dB, NaN where no clean image was given.
        psnr_average: of the running average of the outputs, NaN where it is off.
    """

    step: int
    loss: float
    psnr: float
    psnr_average: float


class History(Sequence[Record]):
    """Records of a run in order of steps; ``history.psnr`` or ``history["psnr"]`` is one column as a list.

    Example:
        >>> history = oes.History()
        >>> history.add(0, torch.tensor(0.25), 6.0, float("nan"))
        >>> history.add(10, torch.tensor(0.01), 20.0, float("nan"))
        >>> history.step, history.psnr, history.best().step
        ([0, 10], [6.0, 20.0], 10)
    """

    def __init__(self, rows: Tensor | None = None) -> None:
        # Rows stay tensors on their device, so that recording does not wait for it.
        self._rows: list[Tensor] = [] if rows is None else list(rows.unbind(0))

    def add(self, step: int, loss: Tensor, psnr: Tensor | float, psnr_average: Tensor | float) -> None:
        """Append one record; the values may be scalar tensors."""
        values = [
            torch.as_tensor(v, dtype=torch.float64, device=loss.device)
            for v in (step, loss, psnr, psnr_average)
        ]
        self._rows.append(torch.stack(values))

    @property
    def rows(self) -> Tensor:
        """All records, float64 of shape [records, 4], on the CPU."""
        if not self._rows:
            return torch.empty(0, len(Record._fields), dtype=torch.float64, device="cpu")
        return torch.stack([row.cpu() for row in self._rows])

    def column(self, name: str) -> list[float]:
        """One of step, loss, psnr and psnr_average."""
        return [getattr(record, name) for record in self]

    @property
    def step(self) -> list[int]:
        """Steps recorded."""
        return [record.step for record in self]

    @property
    def loss(self) -> list[float]:
        """Objective at each."""
        return self.column("loss")

    @property
    def psnr(self) -> list[float]:
        """PSNR of the output at each, in dB."""
        return self.column("psnr")

    @property
    def psnr_average(self) -> list[float]:
        """PSNR of the running average at each, in dB."""
        return self.column("psnr_average")

    def best(self) -> Record | None:
        """The record of highest PSNR; None where no clean image was given."""
        return self._highest("psnr")

    def report(self) -> dict[str, float | int | None]:
        """Peak, end and average of the run, by which the paper compares methods.

        Returns:
            PSNR in dB and steps: ``peak`` (highest of the records) and ``peak_step``, ``end`` and
            ``end_step`` (last record), ``average`` (running average of the outputs at the end),
            ``peak_average`` and ``peak_average_step``. None for what is not known: without a clean image,
            without an average, without records.

        Example:
            >>> history = oes.History()
            >>> history.add(0, torch.tensor(0.1), 20.0, float("nan"))
            >>> history.add(10, torch.tensor(0.01), 18.0, float("nan"))
            >>> history.report()["peak"], history.report()["end"], history.report()["average"]
            (20.0, 18.0, None)
        """
        records = list(self)
        last = records[-1] if records else None
        peak, peak_average = self._highest("psnr"), self._highest("psnr_average")
        return {
            "peak": None if peak is None else peak.psnr,
            "peak_step": None if peak is None else peak.step,
            "end": None if last is None else _known(last.psnr),
            "end_step": None if last is None else last.step,
            "average": None if last is None else _known(last.psnr_average),
            "peak_average": None if peak_average is None else peak_average.psnr_average,
            "peak_average_step": None if peak_average is None else peak_average.step,
        }

    def _highest(self, column: str) -> Record | None:
        known = (record for record in self if not math.isnan(getattr(record, column)))
        return max(known, key=lambda record: getattr(record, column), default=None)

    def __repr__(self) -> str:
        records = list(self)
        if not records:
            return "History(no records)"
        first, last = records[0], records[-1]
        parts = [f"{len(records)} record{'s' if len(records) > 1 else ''}"]
        parts += [f"step{_range(first.step, last.step, 'd')}", f"loss{_range(first.loss, last.loss, '.4g')}"]
        if (best := self.best()) is not None:
            parts += [f"PSNR{_range(first.psnr, last.psnr, '.2f')} dB"]
            parts += [f"best {best.psnr:.2f} dB at step {best.step}"]
        return f"History({', '.join(parts)})"

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Record]:
        for step, *values in self.rows.tolist():
            yield Record(int(step), *values)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    @overload
    def __getitem__(self, index: str) -> list[float]: ...

    def __getitem__(self, index: int | slice | str) -> Record | list[Record] | list[float]:
        if isinstance(index, str):
            return self.column(index)
        return list(self)[index]


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _range(first: float, last: float, form: str) -> str:
    return f" {first:{form}}" if first == last else f" {first:{form}} to {last:{form}}"
