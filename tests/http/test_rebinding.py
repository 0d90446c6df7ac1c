"""A page of another site that has its own name point to this machine (DNS rebinding) reaches nothing."""

from pathlib import Path

import pytest
import redis as redis_py

from tests.http.service import STREAM, Service, problem

MESSAGES = f"/v1/streams/{STREAM}/messages"


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.5", "[::2]"],
)
def test_another_hosts_name_is_refused(service: Service, store: redis_py.Redis, host: str) -> None:
    """To the browser it is the page's own origin, so neither CORS nor Sec-Fetch-Site stops it."""
    as_same_site = {"host": host, "sec-fetch-site": "same-origin"}
    published = service.http.post(MESSAGES, json={"n": 1}, headers=as_same_site)
    assert host in problem(published, 403, "cross-site")["detail"]
    assert store.exists(STREAM) == 0
    for path in (MESSAGES, "/health", "/v1/workers", "/readyz"):
        problem(service.http.get(path, headers=as_same_site), 403, "cross-site")


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:80", "localhost.", "app.localhost:3000", "127.0.0.1", "127.0.0.9:1", "[::1]:8000"]
)
def test_every_name_of_this_machine_is_taken(service: Service, host: str) -> None:
    assert service.patient.post(MESSAGES, json={"n": 1}, headers={"host": host}).status_code == 202
    assert service.patient.get("/readyz", headers={"host": host}).status_code == 200


def test_with_a_token_any_name_is_taken(redis_url: str, tmp_path: Path) -> None:
    """The page does not know the token, and a service for other machines has another host name."""
    with Service(tmp_path, redis_url, config='[api]\ntoken = "s3cret"') as guarded:
        headers = {"host": "queue.example.org", "authorization": "Bearer s3cret"}
        assert guarded.http.get("/health", headers=headers).status_code == 200
