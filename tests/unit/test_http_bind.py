"""The addresses of the HTTP service."""

import socket
from pathlib import Path

import pytest

from supervisor.errors import ConfigError
from supervisor.http_bind import PortInUseError, close, listen, url_of
from tests.support.servers import free_port


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as found:
            found.bind(("::1", 0))
    except OSError:
        return False
    return True


def connects(address: tuple[str, int] | str) -> bool:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family) as client:
        return client.connect_ex(address) == 0


def test_localhost_is_both_families() -> None:
    port = free_port()
    listening = listen(f"localhost:{port}")
    assert len(listening) == 1 + has_ipv6()
    assert connects(("127.0.0.1", port)) and connects(("::1", port)) == has_ipv6()
    with pytest.raises(PortInUseError, match=f"localhost:{port} is in use; use --bind localhost:{port + 1}"):
        listen(f"localhost:{port}")
    close(listening)
    assert not connects(("127.0.0.1", port))


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_a_port_that_is_taken_on_one_family_is_taken() -> None:
    port = free_port()
    with socket.socket(socket.AF_INET6) as other:
        other.bind(("::1", port))
        other.listen()
        with pytest.raises(PortInUseError):
            listen(f"localhost:{port}")
    assert not connects(("127.0.0.1", port)), "nothing is left open"


@pytest.mark.parametrize("folder", ["short", "x" * 120])
def test_a_unix_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    path = tmp_path / folder / "http.sock"
    path.parent.mkdir()
    bind = f"unix:{path}"
    assert url_of(bind) == bind and url_of("[::1]:80") == "http://[::1]:80"
    listening = listen(bind)
    monkeypatch.chdir(path.parent)
    assert connects("http.sock")
    with pytest.raises(PortInUseError, match="is in use; use another"):
        listen(bind)
    # What a service that was killed has left behind.
    close(listening)
    assert path.exists()
    close(listen(bind), bind)
    assert not path.exists()


def test_a_file_or_a_missing_folder_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("data")
    with pytest.raises(ConfigError, match="not a socket"):
        listen(f"unix:{tmp_path}/file")
    with pytest.raises(ConfigError, match="can't listen on"):
        listen(f"unix:{tmp_path}/none/http.sock")
    assert (tmp_path / "file").read_text() == "data"
