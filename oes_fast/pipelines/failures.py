"""What becomes of several runs of which some failed."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from oes_fast.errors import CheckpointError, OESError
from oes_fast.pipelines.train import TrainResult


def finished(ended: Sequence[TrainResult | Exception]) -> list[TrainResult]:
    """The results of several runs.

    Raises:
        Exception: the first that one failed with, see :func:`error_of`.
    """
    errors = [each if isinstance(each, Exception) else None for each in ended]
    results = [None if isinstance(each, Exception) else each for each in ended]
    if any(errors):
        raise error_of(errors, results)
    return [each for each in results if each is not None]


def error_of(errors: Sequence[Exception | None], results: Sequence[TrainResult | None]) -> Exception:
    """The first error. Each is told the number of its run, and what became of all.

    Args:
        errors: one at least; None for runs that did not fail.
        results: None for runs that have none.
    """
    first: Exception | None = None
    told: set[int] = set()
    for number, each in enumerate(errors):
        if each is None or id(each) in told:  # one may be that of several runs
            continue
        told.add(id(each))
        first = first or each
        if isinstance(each, OESError):
            each.args = (f"run {number}: {each}", *each.args[1:])
        elif sys.version_info >= (3, 11):
            each.add_note(f"in run {number} of oes_fast.train_many")
        each.run, each.results, each.errors = number, list(results), list(errors)  # type: ignore[attr-defined]
    assert first is not None
    return first


def without_diverged(error: OESError) -> tuple[list[TrainResult | None], dict[int, str]]:
    """What there is where some runs failed by a loss that is not finite, and others did not.

    Args:
        error: that :func:`train_many` raised.

    Returns:
        (results, None for a run that failed; by its number, what that failed with).

    Raises:
        Exception: what a run failed with that is no matter of its numbers: an argument, a file, a backend,
            lack of memory; a checkpoint first. Or ``error``, where all failed or none was begun.
    """
    errors: Sequence[Exception | None] = getattr(error, "errors", ())
    results: list[TrainResult | None] = getattr(error, "results", [])
    # A loss that is not finite is a plain one.
    others = [each for each in errors if each is not None and type(each) is not OESError]
    if others:
        raise next((each for each in others if isinstance(each, CheckpointError)), others[0])
    if all(result is None for result in results):
        raise error
    return results, {number: str(each) for number, each in enumerate(errors) if each is not None}
