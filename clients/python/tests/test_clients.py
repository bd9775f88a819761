"""What both clients are: alike, shareable by threads, forkable, picklable, and open to one's own httpx."""

import asyncio
import concurrent.futures
import inspect
import multiprocessing
import pickle
from typing import Any

import httpx
import numpy as np
import pytest
import scripted
from scripted import Server

from losseval import AsyncClient, Client, errors
from losseval.transport import DirectTransport
from tests import reference

RNG = np.random.default_rng(7)
LOGITS, LABELS = RNG.standard_normal((4, 6)).astype(np.float32), RNG.integers(0, 6, 4)
EXPECTED = float(reference.cross_entropy(LOGITS, LABELS).loss)


def public(kind: type) -> dict[str, Any]:
    renamed = {"aclose": "close", "__aenter__": "__enter__", "__aexit__": "__exit__"}
    names = [name for name in dir(kind) if not name.startswith("_") or name in {*renamed, *renamed.values()}]
    return {renamed.get(name, name): getattr(kind, name) for name in names}


def test_both_clients_have_the_same_methods_with_the_same_parameters() -> None:
    synchronous, asynchronous = public(Client), public(AsyncClient)
    assert synchronous.keys() == asynchronous.keys()
    for name, method in synchronous.items():
        ours, other = inspect.signature(method).parameters, inspect.signature(asynchronous[name]).parameters
        assert list(ours.items()) == list(other.items()), name
    assert inspect.signature(Client) == inspect.signature(AsyncClient)
    assert inspect.isasyncgenfunction(AsyncClient.evaluate_many)
    for name in ("cross_entropy", "evaluate_arrays", "info", "ready", "aclose"):
        assert inspect.iscoroutinefunction(getattr(AsyncClient, name)), name


def test_every_public_method_is_documented() -> None:
    for kind in (Client, AsyncClient):
        for name, method in public(kind).items():
            assert name.startswith("__") or method.__doc__, name


def test_the_environment_says_where_and_who(monkeypatch: pytest.MonkeyPatch) -> None:
    assert repr(Client()) == "Client('http://127.0.0.1:8000')"
    with Server() as server:
        monkeypatch.setenv("LOSSEVAL_URL", f"{server.url}/behind/a/proxy/")
        monkeypatch.setenv("LOSSEVAL_API_KEY", "from-the-environment")
        with Client() as client:
            client.cross_entropy(LOGITS, LABELS)
    (exchange,) = server.exchanges
    assert exchange.head.startswith("POST /behind/a/proxy/v1/cross-entropy HTTP/1.1")
    assert exchange.header("authorization") == "Bearer from-the-environment"


def test_arguments_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSEVAL_URL", "http://nowhere.invalid")
    monkeypatch.setenv("LOSSEVAL_API_KEY", "other")
    with Server() as server, Client(server.url, api_key="mine") as client:
        client.cross_entropy(LOGITS, LABELS)
    assert server.exchanges[0].header("authorization") == "Bearer mine"


def test_with_options_shares_the_connections_and_leaves_the_original_alone() -> None:
    with Server() as server, Client(server.url) as client:
        other = client.with_options(timeout=5.0, api_key="k")
        for one in (client, other, client):
            one.cross_entropy(LOGITS, LABELS)
        assert server.connections == 1
    assert [exchange.header("authorization") for exchange in server.exchanges] == ["", "Bearer k", ""]
    timeouts = [float(exchange.header("x-request-timeout")) for exchange in server.exchanges]
    assert timeouts[1] <= 5 < timeouts[0]
    with pytest.raises(TypeError):
        client.with_options(time_out=5.0)


def test_a_call_may_have_a_timeout_of_its_own() -> None:
    with Server() as server, Client(server.url) as client:
        client.cross_entropy(LOGITS, LABELS, timeout=2.0)
    assert float(server.exchanges[0].header("x-request-timeout")) <= 2


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), None])
def test_a_timeout_is_a_number_of_seconds(timeout: Any) -> None:
    text = f"timeout must be a finite number of seconds above 0, not {timeout}"
    for make in (Client, AsyncClient, Client().with_options):
        with pytest.raises(ValueError, match=text):
            make(timeout=timeout)
    if timeout is not None:  # which is the client's
        with Server() as server, Client(server.url) as client, pytest.raises(ValueError, match=text):
            client.cross_entropy(LOGITS, LABELS, timeout=timeout)
        assert server.exchanges == []


def test_a_timeout_longer_than_sockets_take_is_fine() -> None:
    with Server() as server, Client(server.url, timeout=1e300) as client:
        assert client.cross_entropy(LOGITS, LABELS).loss == 0.5


def test_white_space_around_a_key_is_no_part_of_it() -> None:
    with Server() as server, Client(server.url, api_key=" k\n") as client:
        client.cross_entropy(LOGITS, LABELS)
    assert server.exchanges[0].header("authorization") == "Bearer k"


@pytest.mark.parametrize("key", ["SECRET\nX: y", "SECRET\t1", "SECRET\N{EURO SIGN}"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSEVAL_API_KEY", key)
    with pytest.raises(ValueError, match=r"^api_key must be printable ASCII$"):
        Client()
    for make in (Client, AsyncClient, Client(api_key="k").with_options):
        with pytest.raises(ValueError, match=r"^api_key must be printable ASCII$"):
            make(api_key=key)


def test_a_request_id_stays_in_its_line() -> None:
    with Server() as server, Client(server.url) as client, pytest.raises(ValueError, match="request_id must be"):
        client.cross_entropy(LOGITS, LABELS, request_id="a\r\nX: y")
    assert server.exchanges == []


@pytest.mark.parametrize(
    "url",
    [
        "http://user:SECRET@host",
        "http://user:SEC/RET@host",
        "http://host/?a=b",
        "http://host?",
        "http://host#a",
        "http://host:99999",
        "http://a..b",
        "http://host\n",
        "http://ho st",
        "http://[::1",
        "http://",
        "ftp://host",
        "host:8000",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_and_not_shown(url: str) -> None:
    for make in (Client, AsyncClient):
        with pytest.raises(ValueError, match=r"^base_url must be http\(s\)://host") as caught:
            make(url)
        assert "SEC" not in str(caught.value)


@pytest.mark.parametrize("host", ["http://[::1]", "HTTP://[::1]:80", "http://localhost/path/"])
def test_a_port_can_be_left_out(host: str) -> None:
    with Client(host) as client:
        transport = client._open()[0]._transport
        assert isinstance(transport, DirectTransport)
        connection = transport._take(httpx.URL(host))
        assert (connection.host, connection.port) == (httpx.URL(host).host, 80)


def test_a_misspelt_option_is_refused_before_anything_is_sent() -> None:
    with Server() as server, Client(server.url) as client:
        with pytest.raises(TypeError, match=r"no option 'temprature'; did you mean 'temperature'\?"):
            client.cross_entropy(LOGITS, LABELS, temprature=2)  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="logits can't be sent as complex128"):
            client.cross_entropy(LOGITS.astype(complex), LABELS)
    assert server.exchanges == []


def test_an_httpx_client_of_ones_own_is_used_and_left_open(url: str) -> None:
    with httpx.Client(headers={"X-Extra": "1"}) as http:
        with Client(url, http_client=http) as client:
            assert client.cross_entropy(LOGITS, LABELS).loss == pytest.approx(EXPECTED, rel=1e-6)
        assert not http.is_closed


def test_an_asynchronous_httpx_client_of_ones_own_is_used_and_left_open(url: str) -> None:
    async def evaluate() -> float:
        async with httpx.AsyncClient() as http:
            async with AsyncClient(url, http_client=http) as client:
                result = await client.cross_entropy(LOGITS, LABELS)
            assert not http.is_closed
            return result.loss

    assert asyncio.run(evaluate()) == pytest.approx(EXPECTED, rel=1e-6)


def test_a_transport_of_ones_own_is_used() -> None:
    headers = {"content-type": "application/x-safetensors"}
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, headers=headers, content=scripted.ANSWER)

    with Client("https://host", transport=httpx.MockTransport(handle)) as client:
        assert client.cross_entropy(LOGITS, LABELS).loss == 0.5
    assert str(seen[0].url) == "https://host/v1/cross-entropy"


def test_32_threads_share_a_client(url: str) -> None:
    batches = [(RNG.standard_normal((3, size)).astype(np.float32), RNG.integers(0, size, 3)) for size in range(2, 34)]
    with Client(url) as client, concurrent.futures.ThreadPoolExecutor(32) as threads:
        results = list(threads.map(lambda batch: [client.cross_entropy(*batch).loss for _ in range(5)], batches))
    for batch, losses in zip(batches, results, strict=True):
        assert losses == pytest.approx([float(reference.cross_entropy(*batch).loss)] * 5, rel=1e-6)


def test_many_tasks_share_a_client(url: str) -> None:
    async def evaluate() -> list[float]:
        async with AsyncClient(url) as client:
            results = await asyncio.gather(*(client.cross_entropy(LOGITS, LABELS) for _ in range(32)))
            return [result.loss for result in results]

    assert asyncio.run(evaluate()) == pytest.approx([EXPECTED] * 32, rel=1e-6)


def _evaluate_in_child(client: Client, results: Any) -> None:
    results.put([client.cross_entropy(LOGITS, LABELS).loss for _ in range(20)])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork")
def test_a_fork_has_connections_of_its_own() -> None:
    """Parent and children call at the same time on what was one client."""
    with Server() as server, Client(server.url) as client:
        client.cross_entropy(LOGITS, LABELS)
        context = multiprocessing.get_context("fork")
        results = context.Queue()
        children = [context.Process(target=_evaluate_in_child, args=(client, results)) for _ in range(3)]
        for child in children:
            child.start()
        mine = [client.cross_entropy(LOGITS, LABELS).loss for _ in range(20)]
        theirs = [results.get(timeout=20) for _ in children]
        for child in children:
            child.join(20)
        assert [mine, *theirs] == [[0.5] * 20] * 4
        assert [child.exitcode for child in children] == [0, 0, 0]
        assert server.connections == 4


def test_a_pickled_client_works_elsewhere(url: str) -> None:
    with Client(url, timeout=7.0, api_key="k") as client:
        client.cross_entropy(LOGITS, LABELS)
        with pickle.loads(pickle.dumps(client)) as copy:
            assert copy._config == client._config
            assert copy.cross_entropy(LOGITS, LABELS).loss == pytest.approx(EXPECTED, rel=1e-6)
            assert copy._open()[0] is not client._open()[0]


def test_an_asynchronous_client_can_be_pickled(url: str) -> None:
    async def evaluate() -> float:
        async with pickle.loads(pickle.dumps(AsyncClient(url))) as copy:
            return float((await copy.cross_entropy(LOGITS, LABELS)).loss)

    assert asyncio.run(evaluate()) == pytest.approx(EXPECTED, rel=1e-6)


def test_a_client_of_a_spawned_process(url: str) -> None:
    """What a data loader's worker does: the client arrives there pickled."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    child = context.Process(target=_evaluate_in_child, args=(Client(url), results))
    child.start()
    assert results.get(timeout=30) == pytest.approx([EXPECTED] * 20, rel=1e-6)
    child.join(10)
    assert child.exitcode == 0


def test_idle_connections_are_given_up_before_the_service_does() -> None:
    """Four seconds before its 75."""
    with Client() as client:
        http, _ = client._open()
        transport = http._transport
        assert isinstance(transport, DirectTransport)
        assert transport._keepalive_s == 71


def test_a_connection_idle_for_too_long_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("losseval.transport.time.monotonic", lambda: now[0])
    with Server() as server, Client(server.url, timeout=1000) as client:
        for now[0] in (0.0, 70.9, 142.0):
            client.cross_entropy(LOGITS, LABELS)
        assert server.connections == 2


def test_proxies_of_the_environment_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with Server() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        with Client("http://somewhere.invalid") as client:
            assert client.cross_entropy(LOGITS, LABELS).loss == 0.5
    assert proxy.exchanges[0].head.startswith("POST http://somewhere.invalid/v1/cross-entropy")
    monkeypatch.delenv("HTTP_PROXY")
    monkeypatch.setenv("NO_PROXY", "localhost")
    with Client() as client:
        assert isinstance(client._open()[0]._transport, DirectTransport)


def test_readiness_tells_not_ready_from_nobody() -> None:
    with Server(scripted.answer(status=503, body=b'{"status": "not ready"}')) as server, Client(server.url) as client:
        assert client.ready() is False
    with Client(server.url, max_attempts=1) as client, pytest.raises(errors.APIConnectionError):
        client.ready()


def test_closing_an_unused_client_is_fine() -> None:
    Client().close()
    asyncio.run(AsyncClient().aclose())
