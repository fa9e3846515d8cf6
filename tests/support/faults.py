"""An HTTP proxy that injects the faults of networks and busy stores into requests.

    client -> proxy -> store: bytes unchanged, with keep-alive, HEAD, ranges, chunked bodies, 100-continue

A planned fraction of the requests gets one of KINDS instead. The n-th request always gets the same fault for the same
random seed; the order of requests depends on the clients. `python -m tests.support.faults URL --fraction 0.1 --seed 0`
serves until its standard input ends.
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
    "refuse",  # reset the connection once the request's head is there
    "delay",  # forward the request after DELAY
    "throttle",  # answer 503 SlowDown
    "cut request",  # send half of its body to the store, then reset both connections; "refuse" if it has no body
    "cut answer",  # send half of the answer's body, then close; if it has no body, close without any answer
)
DELAY = 0.3  # seconds

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
THROTTLED = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    % len(SLOW_DOWN)
)


@dataclass
class Proxy:
    """State of a proxy.

    Attributes:
        upstream: URL of the store.
        plan: Fault for each request in turn; None lets it pass.
        endpoint: URL of the proxy.
        requests: Number of requests so far.
        faults: Number of requests that got each kind of fault.
        next_faults: Faults for the next requests, before the plan goes on.
    """

    upstream: str
    plan: Iterator[str | None]
    endpoint: str = ""
    requests: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    next_faults: deque[str | None] = field(default_factory=deque)

    async def serve(self, port: int, ended: asyncio.Event, started: threading.Event) -> None:
        """Serve until `ended` is set. Sets `started` when the port is open."""
        connections: set[asyncio.Task[None]] = set()

        async def connected(*client: asyncio.StreamReader | asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            connections.add(task)
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._serve_connection(*client)
            connections.discard(task)

        server = await asyncio.start_server(connected, "127.0.0.1", port)
        self.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        started.set()
        await ended.wait()
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _serve_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        store_reader = store_writer = None
        try:
            while head := await read_head(reader):
                if store_writer is None or store_reader.at_eof():
                    if store_writer is not None:
                        store_writer.close()
                    address = urlsplit(self.upstream)
                    store_reader, store_writer = await asyncio.open_connection(address.hostname, address.port)
                if not await self._serve_request(head, Exchange(reader, writer, store_reader, store_writer)):
                    return
        finally:
            writer.close()
            if store_writer is not None:
                store_writer.close()

    async def _serve_request(self, head: "Head", exchange: "Exchange") -> bool:
        """Serve one request. Return whether the connection can take another."""
        self.requests += 1
        fault = self._next_fault(head)
        if fault == "refuse":
            reset(exchange.writer)
            return False
        if fault == "throttle":
            await exchange.throttle(head)
            return False
        if fault == "delay":
            await asyncio.sleep(DELAY)
        return await exchange.forward(head, fault)

    def _next_fault(self, head: "Head") -> str | None:
        fault = self.next_faults.popleft() if self.next_faults else next(self.plan)
        if fault == "cut request" and not head.has_body:
            fault = "refuse"
        if fault:
            self.faults[fault] += 1
        return fault


@dataclass
class Exchange:
    """Streams of one request: from and to the client, from and to the store."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    store_reader: asyncio.StreamReader
    store_writer: asyncio.StreamWriter

    async def throttle(self, head: "Head") -> None:
        """Answer 503 SlowDown."""
        if "expect" not in head.fields:  # else the client waits before it sends its body
            await copy(body(self.reader, head), None)
        self.writer.write(THROTTLED + (b"" if head.method == "HEAD" else SLOW_DOWN))
        await self.writer.drain()

    async def forward(self, head: "Head", fault: str | None) -> bool:
        """Forward a request and its answer, or the halves that a fault leaves. Return whether both sides stay open."""
        self.store_writer.write(head.content)
        max_bytes = head.half if fault == "cut request" else None
        sending = asyncio.create_task(copy(body(self.reader, head), self.store_writer, max_bytes))
        try:
            if fault == "cut request":
                while not sending.done() and (answer := await read_interim(self.store_reader, sending)):
                    self.writer.write(answer.content)
                await sending
                reset(self.store_writer)
                reset(self.writer)
                return False
            while (answer := await read_head(self.store_reader)) and answer.status < 200:
                self.writer.write(answer.content)
            if answer is None:
                return False
            answer.answers = head.method
            if fault == "cut answer":
                if answer.has_body:
                    self.writer.write(answer.content)
                    await copy(body(self.store_reader, answer), self.writer, answer.half)
                return False
            self.writer.write(answer.content)
            await copy(body(self.store_reader, answer), self.writer)
            return sending.done() and not answer.ends_connection and not head.ends_connection
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)


@dataclass
class Head:
    """First line and header fields of a request or an answer.

    Attributes:
        content: Bytes up to and with the empty line.
        answers: Method of the request that this answers.
    """

    content: bytes
    answers: str = ""

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
        """Number of bytes of the body; None if it is chunked, -1 if it ends with the connection."""
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
        """Number of bytes of the body to pass where it is cut; 1 if its length is unknown."""
        return max(1, (self.length or 0) // 2)

    @property
    def ends_connection(self) -> bool:
        is_http_1_0 = "HTTP/1.0" in (self.words[0], self.words[-1])
        return self.length == -1 or self.fields.get("connection", "close" if is_http_1_0 else "").lower() == "close"


async def read_head(reader: asyncio.StreamReader) -> Head | None:
    """Read the next head. Return None if the connection ended before it."""
    try:
        return Head(await reader.readuntil(b"\r\n\r\n"))
    except asyncio.IncompleteReadError:
        return None


async def read_interim(reader: asyncio.StreamReader, sending: asyncio.Task[None]) -> Head | None:
    """Read the next answer. Return None if the body is sent first."""
    reading = asyncio.create_task(read_head(reader))
    await asyncio.wait((reading, sending), return_when=asyncio.FIRST_COMPLETED)
    if reading.done():
        return reading.result()
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    return None


async def body(reader: asyncio.StreamReader, head: Head) -> AsyncIterator[bytes]:
    """Yield the bytes that follow a head, with the framing of chunks."""
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


async def copy(pieces: AsyncIterator[bytes], writer: asyncio.StreamWriter | None, max_bytes: int | None = None) -> None:
    """Write the pieces, or their first `max_bytes` bytes. Without a writer, drop them."""
    async with aclosing(pieces):
        async for piece in pieces:
            if writer is not None:
                writer.write(piece[:max_bytes])
                await writer.drain()
            if max_bytes is not None:
                max_bytes -= len(piece)
                if max_bytes <= 0:
                    return


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with RST, as the kernel of a crashed machine does, instead of closing it in order."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def seeded_plan(fraction: float, seed: int) -> Iterator[str | None]:
    """Yield the fault for each request, or None: a random kind for a fraction of the requests."""
    draw = random.Random(seed)
    while True:
        yield draw.choice(KINDS) if draw.random() < fraction else None


@contextmanager
def proxy(upstream: str, fraction: float = 0.1, seed: int = 0, port: int = 0) -> Iterator[Proxy]:
    """Run a proxy in front of the server at the URL `upstream`, in a thread of its own. Port 0 is any free port."""
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
    """Serve until the standard input ends. Print the endpoint first, and the faults last."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.faults")
    parser.add_argument("upstream", help="URL of the server")
    parser.add_argument("--fraction", type=float, default=0.1, help="fraction of the requests that get a fault")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the faults")
    parser.add_argument("--port", type=int, default=0, help="port of the proxy; 0: any free port")
    options = parser.parse_args()
    with proxy(options.upstream, options.fraction, options.seed, options.port) as serving:
        print(serving.endpoint, flush=True)
        with suppress(EOFError, KeyboardInterrupt):
            input()
        print(f"{serving.requests:,} requests, of which {dict(serving.faults)}", flush=True)


if __name__ == "__main__":
    main()
