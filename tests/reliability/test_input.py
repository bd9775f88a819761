"""Wrong bodies by the thousand: each refused, none in the way of another, none of them kept."""

import http.client
import json
import select
import socket
from collections.abc import Iterator, Mapping
from contextlib import closing

import pytest

from tests.api.test_raw_socket import head, read_response
from tests.reliability.conftest import Figures
from tests.reliability.corpus import GOOD_BODIES, HAND_MADE, Wrong, mutations, prefixes
from tests.reliability.replicas import Replica, Reply, exchange, serving

LONGEST_S = 2.0
GROWTH_BYTES = 5 << 20
DIGITS_S = [pytest.param(2.0, id="2-s"), pytest.param(0.1, id="100-ms", marks=pytest.mark.reliability)]
MUTATED = [pytest.param(1000, id="1000"), pytest.param(5000, id="5000", marks=pytest.mark.reliability)]


class Conversation:
    """One connection after the other, until the service closes it."""

    def __init__(self, replica: Replica) -> None:
        self._port = replica.port
        self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
        self.requests = 0
        self.slowest_s = 0.0

    def send(self, body: bytes, headers: Mapping[str, str]) -> Reply:
        reply = exchange(self._port, body, headers, connection=self._connection)
        self.requests += 1
        self.slowest_s = max(self.slowest_s, reply.seconds)
        assert reply.seconds < LONGEST_S, f"{reply.seconds:.1f} s for {body[:200]!r}"
        return reply

    def close(self) -> None:
        self._connection.close()


def check_refusal(reply: Reply, name: str) -> str:
    """Checks what holds for every problem document, and returns its code."""
    assert reply.status < 500, f"{name}: {reply.status} {reply.content[:500]!r}"
    assert reply.headers["content-type"] == "application/problem+json", name
    assert len(reply.content) <= 4096, name
    problem = json.loads(reply.content)
    assert problem["status"] == reply.status, name
    return str(problem["code"])


def send_wrong(conversation: Conversation, wrong: Wrong) -> None:
    reply = conversation.send(wrong.body, wrong.headers)
    code = check_refusal(reply, wrong.name)
    assert reply.status in wrong.statuses, f"{wrong.name}: {reply.status} {code}"
    assert not wrong.codes or code in wrong.codes, f"{wrong.name}: {code}"


def send_everything(replica: Replica, figures: Figures, *, mutated: int) -> None:
    """All of it twice: what the first round taught the allocator is no leak of the second."""
    corpus = [*HAND_MADE, *prefixes()]
    resident: list[int] = []
    accepted = 0
    with closing(Conversation(replica)) as conversation:
        for _ in range(2):
            accepted = 0
            for wrong in corpus:
                send_wrong(conversation, wrong)
            for body, headers in mutations(mutated):
                reply = conversation.send(body, headers)
                accepted += reply.status == http.client.OK
                if reply.status != http.client.OK:
                    check_refusal(reply, repr(body))
            resident.append(replica.resident_bytes())
        growth = resident[1] - resident[0]
        figures(
            hand_made=len(HAND_MADE),
            prefixes=len(corpus) - len(HAND_MADE),
            mutations=mutated,
            of_these_accepted=accepted,
            slowest_ms=conversation.slowest_s * 1e3,
            growth_mib=growth / 2**20,
        )
    assert growth <= GROWTH_BYTES, f"memory grew by {growth >> 20} MiB"


def test_the_corpus_is_large_and_of_one_piece() -> None:
    assert len(HAND_MADE) >= 300
    assert len({(wrong.body, wrong.headers["content-type"]) for wrong in HAND_MADE}) >= 300


def test_what_is_cut_and_mutated_is_good(plain: Replica) -> None:
    for body, headers in GOOD_BODIES:
        assert exchange(plain.port, body, headers).status == http.client.OK


@pytest.mark.timeout(120)
@pytest.mark.parametrize("mutated", MUTATED)
def test_every_wrong_body_is_refused(mutated: int, plain: Replica, figures: Figures) -> None:
    send_everything(plain, figures, mutated=mutated)


@pytest.mark.reliability
@pytest.mark.timeout(120)
def test_every_wrong_body_is_refused_without_assertions(figures: Figures) -> None:
    with serving(python=("-O",)) as optimized:
        send_everything(optimized, figures, mutated=5000)


def test_a_service_that_stumbles_is_found(figures: Figures) -> None:
    with (
        serving("errors_are_bugs", is_unharmed=False) as stumbling,
        pytest.raises(AssertionError, match="500"),
    ):
        send_everything(stumbling, figures, mutated=0)


def test_a_service_that_keeps_what_it_gets_is_found(figures: Figures) -> None:
    with serving("bodies_are_kept") as keeping, pytest.raises(AssertionError, match="memory grew"):
        send_everything(keeping, figures, mutated=500)


@pytest.fixture(scope="module")
def thorough() -> Iterator[Replica]:
    with serving("long_numbers,every_element_explained", is_unharmed=False) as replica:
        yield replica


def send_digits(replica: Replica, figures: Figures, *, longest_s: float) -> None:
    """The best of three: whatever else the machine does is not measured."""
    slowest = 0.0
    for wrong in HAND_MADE:
        if wrong.name.startswith("digits"):
            slowest = max(slowest, min(exchange(replica.port, wrong.body, wrong.headers).seconds for _ in range(3)))
            assert slowest < longest_s, f"{slowest:.1f} s for {wrong.name}"
    figures(slowest_ms=slowest * 1e3, bar_ms=longest_s * 1e3)


@pytest.mark.parametrize("longest_s", DIGITS_S)
def test_numbers_of_a_million_digits_hold_nobody_up(longest_s: float, plain: Replica, figures: Figures) -> None:
    send_digits(plain, figures, longest_s=longest_s)


@pytest.mark.reliability
@pytest.mark.timeout(180)
def test_a_service_that_reads_numbers_of_any_length_is_found(thorough: Replica, figures: Figures) -> None:
    with pytest.raises(AssertionError, match="s for digits"):
        send_digits(thorough, figures, longest_s=2.0)


def send_wrong_elements(replica: Replica, figures: Figures) -> None:
    body = b'{"logits":[[' + b",".join([b'"x"'] * 10**6) + b']],"labels":[0]}'
    resident = replica.resident_bytes()
    replica.forget_peak()
    reply = exchange(replica.port, body)
    growth = replica.peak_bytes() - resident
    figures(seconds=reply.seconds, growth_mib=growth / 2**20, reserved_mib=20 * len(body) / 2**20)
    assert check_refusal(reply, "a million strings") == "invalid_value"
    assert growth <= 20 * len(body), f"{growth >> 20} MiB for {len(body) >> 20} MiB"


def test_a_million_wrong_elements_are_a_short_answer_and_no_more_memory_than_reserved(
    plain: Replica, figures: Figures
) -> None:
    send_wrong_elements(plain, figures)


@pytest.mark.reliability
def test_a_service_that_explains_a_million_elements_is_found(thorough: Replica, figures: Figures) -> None:
    with pytest.raises(AssertionError, match="MiB for"):
        send_wrong_elements(thorough, figures)


LIMIT = 1 << 20
PIECE = bytes(1 << 16)


def deliver(replica: Replica, *, is_chunked: bool) -> int:
    """Sends too much, goes on for a moment when the answer has come, and returns its status, 0 for none.

    Linux keeps an answer behind which the connection is reset. Other systems don't, so a reset counts as none.
    """
    line = "Transfer-Encoding: chunked" if is_chunked else f"Content-Length: {2 * LIMIT}"
    framed = b"%x\r\n%s\r\n" % (len(PIECE), PIECE) if is_chunked else PIECE
    pieces = LIMIT // len(PIECE) if is_chunked else 0
    with socket.create_connection(("127.0.0.1", replica.port), timeout=20) as connection:
        try:
            connection.sendall(head(line))
            for _ in range(pieces + 1):
                connection.sendall(framed)
            select.select([connection], [], [], 20)
            for _ in range(3):
                connection.sendall(framed)
            status = read_response(connection).status_code
            connection.recv(1)  # the end
        except OSError:
            return 0
    return status


def send_too_large(replica: Replica, figures: Figures, *, count: int) -> None:
    for is_chunked in (False, True):
        for _ in range(5):
            deliver(replica, is_chunked=is_chunked)
        replica.forget_peak()
        before = replica.resident_bytes()
        arrived = sum(deliver(replica, is_chunked=is_chunked) == 413 for _ in range(count))
        growth = replica.peak_bytes() - before
        figures("chunked" if is_chunked else "length", arrived=f"{arrived / count:.2%}", growth_mib=growth / 2**20)
        assert arrived >= 0.999 * count, f"{count - arrived} of {count} clients did not get the 413"
        assert growth < 1 << 20, "a refused body takes memory"


@pytest.fixture(scope="module")
def small() -> Iterator[Replica]:
    with serving(max_json_bytes=LIMIT, linger_timeout=10) as running:  # the client may be held up
        yield running


@pytest.mark.parametrize(
    "count", [pytest.param(100, id="100"), pytest.param(1000, id="1000", marks=pytest.mark.reliability)]
)
def test_what_is_too_large_is_told_so_while_it_still_sends(count: int, small: Replica, figures: Figures) -> None:
    send_too_large(small, figures, count=count)
    small.check_unharmed()


def test_a_service_that_hangs_up_after_a_refusal_is_found(careless: Replica, figures: Figures) -> None:
    with pytest.raises(AssertionError, match="did not get the 413"):
        send_too_large(careless, figures, count=20)
