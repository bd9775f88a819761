"""Writes of one turn of the event loop, gathered: one system call for an answer, and all answers of a batch in a row.

Head and body of an answer are two writes of the server. And each write wakes a client that sleeps, which costs the
sender more than the write itself; written in a row, most answers find it awake. Since the answers of a batch are made
in one turn, none of them waits for anything but its neighbours.
"""

import asyncio
import socket
import struct
from typing import Any

from ..dtypes import Buffer

GATHERED_BYTES = 1 << 16


class GatheringTransport:
    """A transport whose writes leave at the end of the loop's turn, or when they are large, or before it closes."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, *, linger_s: float) -> None:
        self._transport = transport
        self._loop = loop
        self._linger_s = linger_s
        self._parts: list[Buffer] = []
        self._size = 0
        self._written_bytes = 0
        self._lingering: asyncio.TimerHandle | None = None
        self.lingers = False

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the transport has
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """Tells whether nothing more can be written."""
        return self._lingering is not None or self._transport.is_closing()

    @property
    def left_bytes(self) -> int:
        """How much of what was written has been taken by the system."""
        return self._written_bytes - self._transport.get_write_buffer_size()

    @property
    def is_flushed(self) -> bool:
        """Whether the system has all that was written."""
        return not self._parts and not self._transport.get_write_buffer_size()

    def write(self, data: Buffer) -> None:
        """Takes the next bytes of the stream."""
        if not self._parts:
            self._loop.call_soon(self.flush)
        self._parts.append(data)
        self._size += len(data)
        if self._size > GATHERED_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes what was gathered."""
        self._written_bytes += self._size
        parts, self._parts, self._size = self._parts, [], 0
        if parts and not self.is_closing():
            self._transport.writelines(parts)

    def reset(self) -> None:
        """Ends the connection at once; the system, too, forgets what it still holds for the other side."""
        reset_on_close = struct.pack("ii", 1, 0)
        self.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset_on_close)
        self.abort()

    def close(self) -> None:
        """Closes the connection when everything is written; where it `lingers`, not before the other side does.

        The bytes of a request that arrive at a closed socket reset the connection, and the answer on its way is lost.
        So for a while only our half is closed (RFC 9112, section 9.6).
        """
        self.flush()
        if not self.lingers:
            self._transport.close()
        elif not self.is_closing():
            self._lingering = self._loop.call_later(self._linger_s, self._transport.close)
            self._transport.resume_reading()
            if self._transport.can_write_eof():  # TLS can't
                self._transport.write_eof()

    def forget(self) -> None:
        """Lets go of a connection that is lost, which the timer would keep in memory."""
        if self._lingering is not None:
            self._lingering.cancel()
