"""The server of the page: it listens on this machine alone, and its pages ask nothing of any other."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oes_fast.autotune_cache import cache_folder
from oes_fast.errors import InputError
from oes_fast.ui.form import MAX_BYTES
from oes_fast.ui.packages import package
from oes_fast.ui.page import build_page
from oes_fast.ui.parts import CSS
from oes_fast.ui.runs import RunQueue
from oes_fast.ui.worker import Command

HOST = "127.0.0.1"
_FONTS = ("system-ui", "sans-serif")
# Whatever Gradio's pages may ask for elsewhere, the browser asks this server alone.
_HEADERS = {
    b"content-security-policy": b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    b"base-uri 'self'; form-action 'self'; frame-ancestors 'none'; object-src 'none'",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


@dataclass(frozen=True)
class Site:
    """A page that is ready to be served.

    Attributes:
        queue: of its runs.
        server: of uvicorn; ``run(sockets=[socket])`` serves until a signal or ``should_exit``.
        socket: that it listens on.
        address: of the page.
    """

    queue: RunQueue
    server: Any
    socket: socket.socket
    address: str

    def serve(self) -> None:
        """Serve the page until Ctrl-C or ``server.should_exit``."""
        self.server.run(sockets=[self.socket])


@contextmanager
def site(command: Command, *, port: int, models: tuple[str, ...], threads: int) -> Iterator[Site]:
    """A page, its queue and its files; afterwards there are those of runs alone that have not ended.

    Args:
        command: what runs the command line; see :class:`oes_fast.ui.runs.RunQueue`.
        port: to listen on, 0 for any that is free.
        models: names of networks to choose from.
        threads: of the CPU, for every run.

    Raises:
        InputError: the port cannot be had.
        OESError: Gradio is not installed.
    """
    package("gradio")
    with _listening(port) as listening, tempfile.TemporaryDirectory(prefix="oes-fast-ui-") as name:
        root = Path(name)
        uploads = root / "cache"  # and what pages download
        os.environ["GRADIO_TEMP_DIR"] = str(uploads)
        queue = RunQueue(cache_folder() / "runs", command, root / "shown")
        try:
            page = build_page(queue, uploads=uploads, models=models, threads=threads)
            uvicorn = package("uvicorn")
            free = listening.getsockname()[1]
            config = uvicorn.Config(
                _application(page, free), log_level="warning", access_log=False, timeout_graceful_shutdown=1
            )
            yield Site(queue, uvicorn.Server(config), listening, f"http://{HOST}:{free}")
        finally:
            queue.close()
            os.environ.pop("GRADIO_TEMP_DIR", None)


@contextmanager
def _listening(port: int) -> Iterator[socket.socket]:
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, port))
            listening.listen()
        except OSError as error:
            why = "it is in use" if error.errno == errno.EADDRINUSE else (error.strerror or str(error))
            raise InputError(f"--port: expected one that is free on {HOST}, got {port}: {why}") from None
        yield listening
    finally:
        listening.close()


def _application(page: Any, port: int) -> Any:
    gr: Any = package("gradio")
    fastapi: Any = package("fastapi")
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    # A page of elsewhere whose name leads here, by a trick with names, is not to be answered.
    app.add_middleware(
        package("starlette.middleware.trustedhost").TrustedHostMiddleware,
        allowed_hosts=[HOST, "localhost"],
    )
    app.add_middleware(_Guard, origins=frozenset(f"http://{host}:{port}" for host in (HOST, "localhost")))
    mounted = gr.mount_gradio_app(
        app,
        page,
        path="/",
        server_name=HOST,
        footer_links=["settings"],
        run_history=False,
        allowed_paths=[],
        show_error=False,
        max_file_size=MAX_BYTES,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=_theme(gr),
        css=CSS,
    )
    page.has_launched = True  # Gradio takes no path but of uploads from pages that have, and any path before
    return mounted


def _theme(gr: Any) -> Any:
    """Gradio's own, with fonts of the system, and a contrast of 4.5 where its own has less."""
    theme = gr.themes.Default(font=_FONTS, font_mono=("ui-monospace", "monospace"))
    return theme.set(
        body_text_color_subdued="*neutral_600",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        link_text_color_dark="*secondary_300",
        link_text_color_active_dark="*secondary_300",
        link_text_color_hover_dark="*secondary_200",
        link_text_color_visited_dark="*secondary_300",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
    )


class _Guard:
    """Adds headers to every answer, and answers no request that a page of another address sends."""

    def __init__(
        self, app: Callable[[Scope, Receive, Send], Awaitable[None]], origins: frozenset[str]
    ) -> None:
        self._app, self._origins = app, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS.items()]
            await send(message)

        origin = dict(scope.get("headers", ())).get(b"origin", b"").decode("latin-1")
        if origin and origin not in self._origins:
            refusal = b"This page answers its own address alone."
            await with_headers({"type": "http.response.start", "status": 403})
            await send({"type": "http.response.body", "body": refusal})
            return
        await self._app(scope, receive, with_headers)
