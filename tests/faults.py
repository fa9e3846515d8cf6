"""An HTTP proxy that does to requests what networks and busy stores do, so that tests can show what comes of it.

    client -> proxy -> store: bytes as they are, connections that stay open, HEAD, ranges, chunks, 100-continue

A planned fraction of the requests meets one of KINDS instead. The n-th request of a seed always meets the same; what
the n-th is, is the clients' affair. `python -m tests.faults URL --fraction 0.1 --seed 0` serves until it is ended.
"""

import argparse
import asyncio
import random
import socket
import struct
import threading
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

KINDS = (
    "refuse",  # reset, once the request's head is there
    "delay",
    "throttle",  # 503 SlowDown
    "cut request",  # half of its body goes to the store, then both connections are reset; without a body: "refuse"
    "cut answer",  # half of its body, then the end; of one without a body, nothing: it has happened, and nobody is told
)
DELAY = 0.3  # seconds

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
THROTTLED = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    % len(SLOW_DOWN)
)


@dataclass
class Proxy:
    """What goes on at `endpoint`: how many requests came, and how many `faults` of each kind they met."""

    upstream: str
    plan: Iterator[str | None]
    endpoint: str = ""
    requests: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    next_faults: deque[str | None] = field(default_factory=deque)  # for the next requests, before the plan goes on

    async def serve(self, port: int, ended: asyncio.Event, started: threading.Event) -> None:
        """Until `ended` is set."""
        connections: set[asyncio.Task[None]] = set()

        async def connected(*client: asyncio.StreamReader | asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            connections.add(task)
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._connection(*client)
            connections.discard(task)

        server = await asyncio.start_server(connected, "127.0.0.1", port)
        self.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        started.set()
        await ended.wait()
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        store_reader = store_writer = None
        try:
            while head := await read_head(reader):
                if store_writer is None or store_reader.at_eof():
                    if store_writer is not None:
                        store_writer.close()
                    place = urlsplit(self.upstream)
                    store_reader, store_writer = await asyncio.open_connection(place.hostname, place.port)
                if not await self._request(head, reader, writer, store_reader, store_writer):
                    return
        finally:
            writer.close()
            if store_writer is not None:
                store_writer.close()

    async def _request(
        self,
        head: "Head",
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        store_reader: asyncio.StreamReader,
        store_writer: asyncio.StreamWriter,
    ) -> bool:
        """One request and its answer; whether the connection may bear another."""
        self.requests += 1
        fault = self.next_faults.popleft() if self.next_faults else next(self.plan)
        if fault == "cut request" and not head.has_body:
            fault = "refuse"
        if fault:
            self.faults[fault] += 1
        if fault == "refuse":
            reset(writer)
            return False
        if fault == "throttle":
            if "expect" not in head.fields:  # else the client waits before it sends its body
                await copy(body(reader, head), None)
            writer.write(THROTTLED + (b"" if head.method == "HEAD" else SLOW_DOWN))
            await writer.drain()
            return False
        if fault == "delay":
            await asyncio.sleep(DELAY)

        store_writer.write(head.content)
        sending = asyncio.create_task(
            copy(body(reader, head), store_writer, head.half if fault == "cut request" else None)
        )
        try:
            if fault == "cut request":
                while not sending.done() and (answer := await read_interim(store_reader, sending)):
                    writer.write(answer.content)
                await sending
                reset(store_writer)
                reset(writer)
                return False
            while (answer := await read_head(store_reader)) and answer.status < 200:
                writer.write(answer.content)
            if answer is None:
                return False
            answer.answers = head.method
            if fault == "cut answer":
                if answer.has_body:
                    writer.write(answer.content)
                    await copy(body(store_reader, answer), writer, answer.half)
                return False
            writer.write(answer.content)
            await copy(body(store_reader, answer), writer)
            return sending.done() and not answer.ends_connection and not head.ends_connection
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)


@dataclass
class Head:
    """First line and fields of a request or an answer."""

    content: bytes
    answers: str = ""  # of an answer: the request's method

    def __post_init__(self) -> None:
        first, *lines = self.content.decode("latin-1").split("\r\n")[:-2]
        self.words = first.split(" ", 2)
        self.fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}

    @property
    def method(self) -> str:
        return self.words[0]

    @property
    def status(self) -> int:
        return int(self.words[1])

    @property
    def is_answer(self) -> bool:
        return self.words[0].startswith("HTTP/")

    @property
    def is_chunked(self) -> bool:
        return self.fields.get("transfer-encoding", "").lower() == "chunked"

    @property
    def length(self) -> int | None:
        """Bytes of the body; None: as the chunks say, or up to the end of the connection."""
        if self.is_answer and (self.answers == "HEAD" or self.status in (204, 304)):
            return 0
        if self.is_chunked:
            return None
        return int(self.fields.get("content-length", -1 if self.is_answer else 0))

    @property
    def has_body(self) -> bool:
        return self.length != 0

    @property
    def half(self) -> int:
        """How many bytes of the body to pass where it is cut; of one of unknown length, the first."""
        return max(1, (self.length or 0) // 2)

    @property
    def ends_connection(self) -> bool:
        is_old = "HTTP/1.0" in (self.words[0], self.words[-1])
        return self.length == -1 or self.fields.get("connection", "close" if is_old else "").lower() == "close"


async def read_head(reader: asyncio.StreamReader) -> Head | None:
    """The next one; None if the connection ended before it."""
    try:
        return Head(await reader.readuntil(b"\r\n\r\n"))
    except asyncio.IncompleteReadError:
        return None


async def read_interim(reader: asyncio.StreamReader, sending: asyncio.Task[None]) -> Head | None:
    """The next answer, unless the body is sent before."""
    reading = asyncio.create_task(read_head(reader))
    await asyncio.wait((reading, sending), return_when=asyncio.FIRST_COMPLETED)
    if reading.done():
        return reading.result()
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    return None


async def body(reader: asyncio.StreamReader, head: Head) -> AsyncIterator[bytes]:
    """The bytes that follow a head, as they are."""
    if head.is_chunked and head.has_body:
        size = None
        while size != 0:
            line = await reader.readline()
            yield line
            size = int(line.partition(b";")[0], 16)
            if size:
                yield await reader.readexactly(size + 2)
        while (line := await reader.readline()).strip():
            yield line
        yield line
        return
    left = head.length
    while left and (piece := await reader.read(65536 if left < 0 else min(left, 65536))):
        left -= len(piece) if left > 0 else 0
        yield piece


async def copy(pieces: AsyncIterator[bytes], writer: asyncio.StreamWriter | None, most: int | None = None) -> None:
    """Write (or drop) all that comes, or the first `most` bytes of it."""
    async with aclosing(pieces):
        async for piece in pieces:
            if writer is not None:
                writer.write(piece[:most])
                await writer.drain()
            if most is not None:
                most -= len(piece)
                if most <= 0:
                    return


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection as a crashed machine's kernel does, not as one that has said all."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def seeded_plan(fraction: float, seed: int) -> Iterator[str | None]:
    """What each request meets."""
    draw = random.Random(seed)
    while True:
        yield draw.choice(KINDS) if draw.random() < fraction else None


@contextmanager
def proxy(upstream: str, fraction: float = 0.1, seed: int = 0, port: int = 0) -> Iterator[Proxy]:
    """A proxy in front of the server at the URL `upstream`, in a thread of its own; `port` 0 is any free one."""
    made = Proxy(upstream, seeded_plan(fraction, seed))
    started, loops = threading.Event(), []

    async def serve() -> None:
        ended = asyncio.Event()
        loops.append((asyncio.get_running_loop(), ended))
        await made.serve(port, ended, started)

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    if not started.wait(10):
        raise RuntimeError(f"the proxy did not start; is port {port} taken?")
    try:
        yield made
    finally:
        ((loop, ended),) = loops
        loop.call_soon_threadsafe(ended.set)
        thread.join()


def main() -> None:
    """Say where it serves, and, when the standard input ends, what it did."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("upstream", help="URL of the server")
    parser.add_argument("--fraction", type=float, default=0.1, help="of requests that meet a fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    with proxy(options.upstream, options.fraction, options.seed, options.port) as serving:
        print(serving.endpoint, flush=True)
        with suppress(EOFError, KeyboardInterrupt):
            input()
        print(f"{serving.requests:,} requests, of which {dict(serving.faults)}", flush=True)


if __name__ == "__main__":
    main()
