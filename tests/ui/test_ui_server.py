"""What the server of the page gives away, and to whom; without a browser."""

from __future__ import annotations

import json
import socket
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from cli_runs import fails

from oes_fast.errors import InputError
from oes_fast.ui.page import _Page
from oes_fast.ui.server import Site

pytest_plugins = ("ui_fixtures",)


def ask(served: Site, path: str, body: object = None, **headers: str) -> tuple[int, str, dict[str, str]]:
    """(status, text, headers) of an answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(served.address + path, data, headers)
    if body is not None:
        request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), dict(error.headers)


def functions(served: Site) -> dict[str, int]:
    """The page's functions by name."""
    config = json.loads(ask(served, "/config")[1])
    return {each["api_name"]: each["id"] for each in config["dependencies"]}


def test_it_listens_on_this_machine_alone(served: Site):
    assert served.socket.getsockname()[0] == "127.0.0.1"
    status, page, headers = ask(served, "/")
    assert status == 200
    assert "default-src 'self'" in headers["content-security-policy"]
    assert '"analytics_enabled":false' in page.replace(" ", "")


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}])
def test_other_addresses_are_not_answered(served: Site, headers: dict[str, str]):
    assert ask(served, "/", **headers)[0] in (400, 403)
    assert ask(served, "/", Origin=served.address)[0] == 200


@pytest.mark.parametrize("folder", ["here", "temporary", "run"])
def test_no_file_of_the_server_can_be_read(
    served: Site, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    places = {"here": tmp_path, "temporary": Path("/tmp"), "run": served.queue._store.root}
    secret = places[folder] / "oes-fast-test-secret.txt"
    secret.write_text("secret")
    try:
        for name in (str(secret), secret.name, f"../{secret.parent.name}/{secret.name}"):
            status, text, _ = ask(served, f"/gradio_api/file={name}")
            assert (status in (403, 404), "secret" in text.replace(name, "")) == (True, False)
    finally:
        secret.unlink()


def test_an_upload_that_was_none_is_not_read(served: Site, tmp_path: Path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    for path in (str(secret), "/etc/passwd", "http://127.0.0.1:1/a.png"):
        data = {"path": path, "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}
        body = {"data": [data], "fn_index": functions(served)["_uploaded"], "session_hash": "test"}
        status, text, _ = ask(served, "/gradio_api/run/predict", body)
        assert status >= 400, (path, text)
        assert "secret" not in text.replace(str(secret), "")


def test_a_port_that_is_taken_is_one_line(capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("gradio")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = fails(capsys, "ui", "--port", port)
    assert f"--port: expected one that is free on 127.0.0.1, got {port}: it is in use" in said
    assert "--port: expected an integer >= 0" in fails(capsys, "ui", "--port", "-1")


def test_where_gradio_is_missing_one_line_says_how_to_get_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "gradio", None)  # what makes an import fail
    said = fails(capsys, "ui", "--port", "0")
    assert said.endswith(
        'gradio: expected the package of that name, found none; pip install "oes_fast[ui]"\n'
    )


def test_a_page_takes_no_file_but_an_upload_whatever_gradio_lets_through(tmp_path: Path):
    page = object.__new__(_Page)  # without Gradio
    page._uploads = tmp_path / "uploads"
    page._uploads.mkdir()
    (tmp_path / "secret.png").write_bytes(b"secret")
    (page._uploads / "link.png").symlink_to(tmp_path / "secret.png")
    upload = page._uploads / "upload.png"
    upload.write_bytes(b"")
    assert page._file(None) is None
    assert page._file(str(upload)) == upload
    for path in (tmp_path / "secret.png", page._uploads / "../secret.png", page._uploads / "link.png"):
        with pytest.raises(InputError, match=r"^secret\.png: expected a file that was uploaded$"):
            page._file(str(path))
    with pytest.raises(InputError, match="expected a file that was uploaded"):
        page._file(str(page._uploads))
