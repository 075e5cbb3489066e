"""A text stream that raises nothing: a display that is closed, full or gone must not end what is computed."""

from __future__ import annotations

import errno
from typing import Any, TextIO

# Nobody reads on: closing `| head`, a terminal that is gone, a descriptor that was closed.
_NOBODY = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO)


class Display:
    """A text stream whose writes never raise: what cannot be shown is dropped.

    Characters that the stream's encoding lacks are written as escapes. There is no ``buffer``: bytes
    written there would raise.

    Args:
        stream: where to write, None for nowhere (Python's ``sys.stdout`` where it was closed at start).

    Attributes:
        failure: why the first text that someone may be missing could not be written, None if it all was. A
            reader who left misses nothing.
    """

    closed = False

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.failure: str | None = None

    def write(self, text: str) -> int:
        """Write ``text`` as far as it goes; at the end of a line, at once."""
        stream = self._stream
        if stream is None:
            return len(text)
        try:
            try:
                stream.write(text)
            except UnicodeEncodeError:
                encoding = stream.encoding or "ascii"
                stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            if "\n" in text:
                stream.flush()
        except (OSError, ValueError) as error:  # ValueError: a closed file
            self._note(error)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write each of ``lines``."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Pass on what was written, if that can be done."""
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._note(error)

    def isatty(self) -> bool:
        """Whether a terminal shows it."""
        try:
            return self._stream is not None and self._stream.isatty()
        except (OSError, ValueError):
            return False

    def writable(self) -> bool:
        """True: there is always something that takes it."""
        return True

    @property
    def encoding(self) -> str:
        """Of the stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":
            raise AttributeError(name)
        return getattr(self._stream, name)

    def _note(self, error: Exception) -> None:
        number = getattr(error, "errno", None)
        if self.failure is None and number is not None and number not in _NOBODY:
            self.failure = getattr(error, "strerror", None) or str(error)
