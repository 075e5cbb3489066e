"""Errors of the library that name the option which an argument came from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from oes_fast.errors import InputError, OESError


def options_of(names: Iterable[str]) -> dict[str, str]:
    """The option of each argument, where it has the same name: --search-lr of search_lr."""
    return {name: f"--{name.replace('_', '-')}" for name in names}


def of_option(error: OESError, options: Mapping[str, str]) -> str:
    """The message, which begins with the option where it began with one of the arguments."""
    name, colon, rest = str(error).partition(":")
    if not isinstance(error, InputError) or not colon or name not in options:
        return str(error)
    return f"{options[name]}{colon}{rest}"


@contextmanager
def naming(options: Mapping[str, str]) -> Iterator[None]:
    """Inside, an :class:`InputError` that begins with an argument begins with its option.

    Args:
        options: by argument.
    """
    try:
        yield
    except InputError as error:
        said = of_option(error, options)
        if said == str(error):
            raise
        raise InputError(said) from None
