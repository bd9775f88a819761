"""A small TCP proxy in a thread: to several replicas in turn, or with faults on the wire."""

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Literal, Self

Fault = Literal["none", "delay", "reset", "truncation", "trickle"]
TRICKLE_BYTES_PER_S = 10_000
_PIECE = 1 << 16


class Proxy:
    """Passes connections on to the first address, in turn, that takes them.

    `fault` is asked for each connection. `delay` holds every piece up, `reset` cuts the connection after some bytes of
    either direction, `truncation` ends the answer early but cleanly, `trickle` lets through 10 KB/s.
    """

    def __init__(self, ports: Sequence[int], fault: Callable[[], Fault] = lambda: "none") -> None:
        self.ports = list(ports)
        self.connections = 0
        self._fault = fault
        self._chance = random.Random(3)
        self._loop = asyncio.new_event_loop()
        self._writers: list[asyncio.StreamWriter] = []
        self._thread = threading.Thread(target=self._loop.run_forever)
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._begin())
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[object, object, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _begin(self) -> None:
        self._server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0.01)  # the transports close their sockets in the loop's next turns

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        first, fault = self.connections, self._fault()
        ports = [self.ports[(first + turn) % len(self.ports)] for turn in range(len(self.ports))]
        for port in ports:
            with contextlib.suppress(OSError):
                other_reader, other_writer = await asyncio.open_connection("127.0.0.1", port)
                self._writers.append(other_writer)
                break
        else:
            _reset(writer)
            return
        limit = self._chance.randrange(1, 3000) if fault in {"reset", "truncation"} else None
        there = asyncio.create_task(self._pump(reader, other_writer, fault, limit if fault == "reset" else None))
        back = asyncio.create_task(self._pump(other_reader, writer, fault, limit))
        try:
            await asyncio.wait([there, back], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (there, back):
                task.cancel()
            await asyncio.gather(there, back, return_exceptions=True)
            is_cut = fault == "reset" and limit is not None
            for end in (writer, other_writer):
                if is_cut:
                    _reset(end)
                else:
                    end.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fault: Fault, limit: int | None
    ) -> None:
        passed, size = 0, TRICKLE_BYTES_PER_S // 20 if fault == "trickle" else _PIECE
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(size):
                if fault == "delay":
                    await asyncio.sleep(self._chance.uniform(0, 0.2))
                if fault == "trickle":
                    await asyncio.sleep(len(piece) / TRICKLE_BYTES_PER_S)
                writer.write(piece if limit is None else piece[: limit - passed])
                await writer.drain()
                passed += len(piece)
                if limit is not None and passed >= limit:
                    return


def _reset(writer: asyncio.StreamWriter) -> None:
    found = writer.get_extra_info("socket")
    if found is not None:
        with contextlib.suppress(OSError):
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
