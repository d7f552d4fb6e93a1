"""A fixed corpus of hostile requests: each is refused at once, with the right Status where there is a request at all, and costs nothing.

The API runs in a process of its own. Every request of the corpus is sent several times over new connections, as it is and by the byte;
what the process spends on one, and what it holds afterwards, is read from the kernel.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest

from tests.support.api_child import ApiChild, api_child
from tests.support.objects import BOARDS, DEPLOYMENTS, GROUP_PATH, board

CPU_SECONDS_MAX = 0.05  # Of the server, for one request and its TLS handshake; the least of a few, as other programs share the caches.
GROWTH_BYTES_MAX = 8 << 20  # Over the whole corpus, after a first round: buffers of one body (3 MiB) that the allocator keeps.
TIMES = 3
WAIT_SECONDS = 10


class Answer(NamedTuple):
    """What came back: code 0 when the server closed the connection without a word."""

    code: int
    body: bytes


class Hostile(NamedTuple):
    """A request, as bytes or pieces of it, and the codes of which one must come."""

    name: str
    codes: tuple[int, ...]
    method: str
    path: str
    body: bytes = b""
    headers: str = ""
    pieces: int = 1
    declared: int | None = None


APPLY = "content-type: application/apply-patch+yaml\r\n"
MERGE = "content-type: application/merge-patch+json\r\n"
JSON_PATCH = "content-type: application/json-patch+json\r\n"
MANAGED = f"{BOARDS}/x?fieldManager=t"
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
MEGABYTE = 1 << 20
PROTOBUF = "content-type: application/vnd.kubernetes.protobuf\r\n"
OPERATIONS = b"[" + b",".join([b'{"op":"copy","from":"","path":"/a"}'] * 60_000) + b"]"
DOUBLING = json.dumps([{"op": "copy", "from": "/spec", "path": f"/spec/k{number}"} for number in range(64)]).encode()
LABELS = json.dumps(board("x", {f"k{number}": "v" for number in range(100_000)})).encode()


def _spec(inside: str) -> bytes:
    return f'{{"metadata":{{"name":"x"}},"spec":{inside}}}'.encode()


CORPUS = [
    Hostile("a YAML bomb of aliases", (400,), "PATCH", MANAGED, BOMB.encode(), APPLY),
    Hostile("YAML that nests 30,000 levels", (400,), "PATCH", MANAGED, b"a: " + b"[" * 30_000, APPLY),
    Hostile("YAML with a key twice", (400,), "PATCH", MANAGED, b"kind: Board\nkind: Board\n", APPLY),
    Hostile("YAML that makes Python objects", (400,), "PATCH", MANAGED, b"a: !!python/object/apply:os.system [id]\n", APPLY),
    Hostile("YAML with a hundred thousand items", (400, 413, 422), "PATCH", MANAGED, b"a:\n" + b"- b\n" * 100_000, APPLY),
    Hostile("JSON that nests 100,000 levels", (400,), "POST", BOARDS, b'{"a":' * 100_000),
    Hostile("JSON that nests 100,000 levels and ends", (400,), "POST", BOARDS, _spec("[" * 100_000 + "]" * 100_000)),
    Hostile("100 MB, declared", (413,), "POST", BOARDS, b" ", declared=100 * MEGABYTE),
    Hostile("100 MB, declared and sent", (413,), "POST", BOARDS, b" " * (16 * MEGABYTE), declared=100 * MEGABYTE),
    Hostile("chunks without an end", (413,), "POST", BOARDS, b" " * (16 * MEGABYTE), "transfer-encoding: chunked\r\n", 64),
    Hostile("a length that is no number", (400,), "POST", BOARDS, b"{}", "content-length: many\r\n"),
    Hostile("two lengths", (400,), "POST", BOARDS, b"{}", "content-length: 2\r\ncontent-length: 3\r\n"),
    Hostile("a length and chunks", (400,), "POST", BOARDS, b"0\r\n\r\n", "content-length: 2\r\ntransfer-encoding: chunked\r\n"),
    Hostile("bad UTF-8", (400,), "POST", BOARDS, b'{"metadata":{"name":"\xff\xfe"}}'),
    Hostile("a byte order mark", (400,), "POST", BOARDS, b"\xef\xbb\xbf{}"),
    Hostile("UTF-16", (400,), "POST", BOARDS, '{"metadata":{"name":"x"}}'.encode("utf-16")),
    Hostile("a lone surrogate", (400,), "POST", BOARDS, b'{"metadata":{"name":"\\ud800"}}'),
    Hostile("a NUL byte in a string", (400,), "POST", BOARDS, b'{"metadata":{"name":"a\0b"}}'),
    Hostile("a NUL in a name", (422,), "POST", BOARDS, b'{"metadata":{"name":"a\\u0000b"}}'),
    Hostile("a NUL in the path", (404, 400), "GET", f"{BOARDS}/a%00b"),
    Hostile("a line end in the path", (404, 400), "GET", f"{BOARDS}/a%0d%0ax:%20y"),
    Hostile("a way up in the path", (404,), "GET", f"{GROUP_PATH}/../../../etc/passwd"),
    Hostile("keys twice", (400,), "POST", BOARDS, b'{"metadata":{"name":"x","name":"y"}}'),
    Hostile("a hundred thousand keys twice", (400,), "POST", BOARDS, b"{" + b",".join([b'"a":1'] * 100_000) + b"}"),
    Hostile("NaN", (400,), "POST", DEPLOYMENTS, _spec('{"replicas":NaN}')),
    Hostile("Infinity", (400,), "POST", DEPLOYMENTS, _spec('{"replicas":-Infinity}')),
    Hostile("1e400", (400,), "POST", DEPLOYMENTS, _spec('{"replicas":1e400}')),
    Hostile("a number of 100,000 digits", (400,), "POST", DEPLOYMENTS, _spec('{"replicas":' + "9" * 100_000 + "}")),
    Hostile("a number of 30 digits", (422,), "POST", DEPLOYMENTS, _spec('{"replicas":' + "9" * 30 + "}")),
    Hostile("a hundred thousand labels", (400,), "POST", BOARDS, LABELS),
    Hostile("sixty thousand operations", (400,), "PATCH", f"{BOARDS}/stays", OPERATIONS, JSON_PATCH),
    Hostile("a patch that doubles", (400, 413, 422), "PATCH", f"{BOARDS}/stays", DOUBLING, JSON_PATCH),
    Hostile("a label selector of 60 KB of terms", (200, 400), "GET", f"{BOARDS}?labelSelector={'a=b,' * 15_000}"),
    Hostile("a label selector of 60 KB of brackets", (400,), "GET", f"{BOARDS}?labelSelector={'(' * 60_000}"),
    Hostile("a label selector of 60 KB in a set", (200, 400), "GET", f"{BOARDS}?labelSelector=a+in+({'x,' * 29_000}y)"),
    Hostile("a label selector of 60 KB of words", (400,), "GET", f"{BOARDS}?labelSelector={'a+in+' * 12_000}"),
    Hostile("a label selector of 60 KB of signs", (400,), "GET", f"{BOARDS}?labelSelector={'!=' * 30_000}"),
    Hostile("a field selector of 60 KB of dots", (200, 400), "GET", f"{BOARDS}?fieldSelector={'a.' * 30_000}=b"),
    Hostile("a query of 1 MB", (400,), "GET", f"{BOARDS}?labelSelector={'a' * MEGABYTE}"),
    Hostile("ten thousand parameters", (200, 400), "GET", f"{BOARDS}?{'a=1&' * 10_000}"),
    Hostile("a continue token of 60 KB", (400, 410), "GET", f"{BOARDS}?continue={'A' * 60_000}"),
    Hostile("a timeout of 60 KB", (400,), "GET", f"{BOARDS}?timeout={'1s' * 30_000}"),
    Hostile("ten thousand heads", (400,), "GET", BOARDS, headers="".join(f"x-{n}: 1\r\n" for n in range(10_000))),
    Hostile("a head of 1 MB", (400,), "GET", BOARDS, headers=f"x: {'y' * MEGABYTE}\r\n"),
    Hostile("an Accept of 60 KB", (406,), "GET", BOARDS, headers=f"accept: {'text/html;q=0.1,' * 3_700}text/plain\r\n"),
    Hostile("a token of 60 KB", (401,), "GET", BOARDS, headers=f"authorization: Bearer {'x' * 60_000}\r\n"),
    Hostile("protobuf that ends within", (400, 415), "POST", "/api/v1/namespaces", b"k8s\0\x0a\xff\xff\xff\xff", PROTOBUF),
    Hostile("a compressed body", (400, 415), "POST", BOARDS, b"\x1f\x8b\x08" + b"\0" * 100, "content-encoding: gzip\r\n"),
]  # fmt: skip


def _request(hostile: Hostile, token: str) -> Iterator[bytes]:
    """Yield the pieces in which the request is sent."""
    chunked = "transfer-encoding" in hostile.headers
    head = f"{hostile.method} {quote(hostile.path, safe='/?=&%+(),!:')} HTTP/1.1\r\nhost: x\r\n"
    if "authorization" not in hostile.headers:
        head += f"authorization: Bearer {token}\r\n"
    if hostile.method != "GET" and not chunked and "content-length" not in hostile.headers:
        head += f"content-length: {len(hostile.body) if hostile.declared is None else hostile.declared}\r\n"
    yield f"{head}{hostile.headers}\r\n".encode()
    if not (chunked and hostile.pieces > 1):
        yield hostile.body
        return
    size = len(hostile.body) // hostile.pieces
    for _ in range(hostile.pieces):
        yield f"{size:x}\r\n".encode() + hostile.body[:size] + b"\r\n"


def _send(child: ApiChild, pieces: Iterable[bytes]) -> Answer:
    """Send until the server answers or closes; return the answer."""
    with (
        socket.create_connection(("127.0.0.1", child.port), timeout=WAIT_SECONDS) as plain,
        child.context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, ssl.SSLError):
            for piece in pieces:
                for at in range(0, len(piece), 1 << 20):
                    connection.sendall(piece[at : at + (1 << 20)])
        received = b""
        with contextlib.suppress(ConnectionResetError, ssl.SSLError):
            while (found := _complete(received)) is None and (piece := connection.recv(1 << 16)):
                received += piece
            return found or Answer(int(received[9:12] or 0), received.partition(b"\r\n\r\n")[2])
        return Answer(int(received[9:12] or 0), received.partition(b"\r\n\r\n")[2])


def _complete(received: bytes) -> Answer | None:
    head, end, body = received.partition(b"\r\n\r\n")
    length = next((int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), None)
    return Answer(int(head[9:12]), body) if end and length is not None and len(body) >= length else None


def _status(answer: Answer) -> Any:
    return json.loads(answer.body) if answer.body[:1] == b"{" else {}


@pytest.mark.parametrize("hostile", [pytest.param(one, id=one.name) for one in CORPUS])
def test_what_the_corpus_is_answered(child: ApiChild, hostile: Hostile) -> None:
    """Heads that break HTTP's limits never become a request; all others are refused by a Status that says why."""
    _send(child, _request(hostile, child.token))
    answers, spent = [], []
    for _ in range(TIMES):
        before = child.cpu_seconds
        answers.append(_send(child, _request(hostile, child.token)))
        spent.append(child.cpu_seconds - before)
    for answer in answers:
        assert answer.code in hostile.codes, answer.body[:500]
        if answer.body[:1] == b"{" and answer.code != 200:
            assert (_status(answer)["kind"], _status(answer)["code"]) == ("Status", answer.code)
            assert len(answer.body) < 4096, "what was sent is not sent back"
    assert min(spent) <= CPU_SECONDS_MAX, f"{min(spent) * 1000:.0f} ms of the server"


def test_memory_stays_flat_and_the_server_answers(child: ApiChild) -> None:
    def everything() -> None:
        for hostile in CORPUS:
            _send(child, _request(hostile, child.token))

    everything()
    before = child.resident_bytes
    everything()
    assert child.resident_bytes - before <= GROWTH_BYTES_MAX
    assert _send(child, _request(Hostile("", (200,), "GET", f"{BOARDS}/stays"), child.token)).code == 200
    (listed,) = _status(_send(child, _request(Hostile("", (200,), "GET", BOARDS), child.token)))["items"]
    assert (listed["metadata"]["name"], listed["metadata"]["generation"]) == ("stays", 1), "nothing of the corpus was stored"


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiChild]:
    """An API in a process of its own, with one Board."""
    with api_child(tmp_path_factory.mktemp("api")) as running:
        made = _send(running, _request(Hostile("", (201,), "POST", BOARDS, json.dumps(board("stays")).encode()), running.token))
        assert made.code == 201
        yield running
