"""Downloads come whole, from the first mirror that has them, or not at all."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from image_trees import entries

from metatransfer.data.readers.fetching import fetch
from metatransfer.errors import UserError


@pytest.fixture
def mirror():
    content = {"/good": b"right", "/wrong": b"other", "/portal": b"\n <!DOCTYPE html><title>Log in</title>"}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = content.get(self.path)
            self.send_response(200 if body else 404)
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


MD5 = "7c4f29407893c334a6cb7a87bf045c0d"  # of b"right"


def test_the_first_mirror_that_gives_the_right_file(tmp_path, mirror):
    target = tmp_path / "new" / "file.zip"
    fetch([f"{mirror}/gone", f"{mirror}/wrong", f"{mirror}/good"], MD5, target)
    assert target.read_bytes() == b"right"
    assert entries(target.parent) == ["file.zip"]


def test_the_login_page_of_a_network_is_not_the_file(tmp_path, mirror):
    with pytest.raises(UserError, match=r"it sent a web page instead of the file, perhaps the login .*: download .*"):
        fetch([f"{mirror}/portal"], MD5, tmp_path / "file.zip")
    assert list(tmp_path.iterdir()) == []


def test_no_mirror_works(tmp_path, mirror):
    target = tmp_path / "file.zip"
    with pytest.raises(UserError, match=rf"could not be downloaded .*404.*MD5 .* instead of.*put it at '{target}'"):
        fetch([f"{mirror}/gone", f"{mirror}/wrong", "http://127.0.0.1:9/x"], MD5, target)
    assert not target.exists()
    assert [path for path in tmp_path.iterdir() if path.is_file()] == []
