"""A worker's listener whose every event waits for the test: for what a real model does too fast, or never."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(content: str | None = None, **more: object) -> dict[str, object]:
    """Return one chunk of a chat answer."""
    delta = {} if content is None else {"content": content}
    ending = {"index": 0, "delta": delta, "finish_reason": more.pop("finish_reason", None)}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "file.gguf", "choices": [ending], **more}


class ScriptedWorker:
    """`say` sends an event to the request that is open, `end` ends its body as HTTP demands, `drop` cuts the connection.

    A request that comes while there are `replies` gets the first of them at once, whole, as one JSON value.
    """

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.heads: list[bytes] = []
        self.replies: list[bytes] = []
        self.left = asyncio.Event()
        self._open: asyncio.StreamWriter | None = None
        self._arrived = asyncio.Event()
        self.endpoint = ""

    async def say(self, event: dict[str, object] | bytes) -> None:
        await self._arrived.wait()
        assert self._open is not None
        data = b"data: " + (event if isinstance(event, bytes) else msgspec.json.encode(event)) + b"\n\n"
        self._open.write(b"%x\r\n%b\r\n" % (len(data), data))
        await self._open.drain()

    async def end(self) -> None:
        assert self._open is not None
        self._open.write(b"0\r\n\r\n")
        await self._open.drain()

    def reset(self) -> None:
        """Wait anew with `say` for the next request, and with `left` for its end."""
        self._arrived.clear()
        self.left.clear()

    def drop(self) -> None:
        assert self._open is not None
        self._open.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        self.asked.append(await reader.readexactly(length))
        self.heads.append(head)
        if self.replies:
            reply = self.replies.pop(0)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(reply), reply))
            await writer.drain()
            writer.close()
            return
        self._open = writer
        writer.write(HEAD)
        self._arrived.set()
        with contextlib.suppress(ConnectionError):
            await reader.read()  # returns when the agent closes
        self.left.set()
        writer.close()

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator["ScriptedWorker"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            if self._open is not None:
                self._open.close()
