"""What uvicorn is told."""

from types import SimpleNamespace
from typing import cast

import pytest

from service.app import Application
from service.server import build
from service.settings import load


@pytest.mark.parametrize(
    ("flags", "is_believed", "networks"),
    [
        pytest.param([], False, None, id="by default"),
        pytest.param(["--forwarded-allow-ips", "10.0.0.0/8, ::1"], True, "10.0.0.0/8, ::1", id="given"),
    ],
)
def test_forwarded_headers_are_believed_from_given_networks_alone(
    flags: list[str], is_believed: bool, networks: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever uvicorn's own variable says."""
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    app = cast(Application, SimpleNamespace(health=None, early_refusal=None, __call__=None))
    config = build(app, load(flags)).config
    assert config.proxy_headers is is_believed
    assert not is_believed or config.forwarded_allow_ips == networks
