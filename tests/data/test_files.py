import gzip
import hashlib
import http.server
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pooch
import pytest

from gambeson.core.errors import DataError
from gambeson.data.files import Remote, data_root, download, find, obtain, read_gzip, verify_md5

CONTENT = bytes(range(256)) * 400
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def server() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/missing":
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT[:1000] if self.path == "/short" else CONTENT)

        def log_message(self, *args: object) -> None:
            pass

    logging.getLogger("pooch").setLevel(logging.ERROR)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()


def remote(url: str, md5: str = MD5) -> Remote:
    return Remote(name="a.bin", url=url, md5=md5, folder="set")


def test_download_stores_the_complete_file_and_nothing_else(server: str, tmp_path: Path) -> None:
    path = download(remote(f"{server}/a.bin"), tmp_path / "new")
    assert path == tmp_path / "new" / "set" / "a.bin"
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("page", "md5", "says"),
    [
        ("a.bin", "0" * 32, "does not match"),
        ("short", MD5, "no connection|IncompleteRead|does not match"),
        ("missing", MD5, "404"),
    ],
)
def test_a_failed_download_says_what_to_do_and_leaves_nothing(
    server: str, tmp_path: Path, page: str, md5: str, says: str
) -> None:
    url = f"{server}/{page}"
    with pytest.raises(DataError, match=says) as error:
        download(remote(url, md5), tmp_path / "new")
    for word in (url, "a.bin", md5, str(tmp_path / "new" / "set"), "$GAMBESON_DATA", "--data-dir"):
        assert word in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_the_message_is_one_sentence_and_a_hint(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no connection") as error:
        download(remote("http://127.0.0.1:9/a.bin"), tmp_path)
    assert len(str(error.value).splitlines()) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError("disk full")])
def test_an_interrupted_download_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: BaseException
) -> None:
    def part(self: object, url: str, output_file: str, pooch: object) -> None:
        Path(output_file).write_bytes(CONTENT[:1000])
        raise interruption

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", part)
    with pytest.raises((KeyboardInterrupt, DataError)):
        download(remote("http://127.0.0.1:9/a.bin"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_obtain_prefers_a_file_that_is_there_and_verifies_on_request(tmp_path: Path) -> None:
    there = tmp_path / "other" / "a.bin"
    there.parent.mkdir()
    there.write_bytes(CONTENT)
    dead = remote("http://127.0.0.1:9/a.bin")
    assert obtain(dead, tmp_path, ["", "other"], verify=True) == there
    there.write_bytes(CONTENT[:-1])
    assert obtain(dead, tmp_path, ["", "other"], verify=False) == there
    with pytest.raises(DataError, match="md5") as error:
        obtain(dead, tmp_path, ["", "other"], verify=True)
    for word in (str(there), MD5, "delete it"):
        assert word in str(error.value)


def test_find_takes_folders_in_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x").touch()
    (tmp_path / "y").touch()
    (tmp_path / "z").mkdir()
    assert find(tmp_path, ["b", ""], ["y", "x"]) == tmp_path / "b" / "x"
    assert find(tmp_path, ["", "b"], ["z", "y"]) == tmp_path / "y"
    assert find(tmp_path, [""], ["z"]) is None


def test_data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAMBESON_DATA", str(tmp_path / "env"))
    assert data_root(tmp_path) == tmp_path
    assert data_root(None) == tmp_path / "env"
    monkeypatch.delenv("GAMBESON_DATA")
    assert data_root(None) == Path(pooch.os_cache("gambeson")).absolute()
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is a file"):
        data_root(tmp_path / "file")


def test_a_file_without_a_published_checksum_cannot_be_verified(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no checksum was published"):
        verify_md5(tmp_path, None)


def test_read_gzip(tmp_path: Path) -> None:
    packed, plain = tmp_path / "a.gz", tmp_path / "a"
    packed.write_bytes(gzip.compress(CONTENT))
    plain.write_bytes(CONTENT)
    assert read_gzip(packed) == read_gzip(plain) == CONTENT
    whole = packed.read_bytes()
    for broken in (whole[:-9], whole[:40], b"", CONTENT, whole[:30] + bytes(20) + whole[50:]):
        packed.write_bytes(broken)
        if broken == b"":  # an empty gzip unpacks to nothing: the reader sees the size
            assert read_gzip(packed) == b""
            continue
        with pytest.raises(DataError, match="bytes") as error:
            read_gzip(packed)
        assert str(packed) in str(error.value)
        assert "delete it" in str(error.value)
