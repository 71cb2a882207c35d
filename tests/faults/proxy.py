"""A TCP proxy before PostgreSQL that can do what networks do: hang without closing, close, and swallow an answer.

It runs in a thread of its own and listens on 127.0.0.1. What a client sends while the network hangs is kept and goes
on when it is back. `lose_answers`: a COMMIT reaches the server, its connection is closed before the answer gets out.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import sqlalchemy as sa

COMMIT: Final = b"COMMIT"
_CHUNK: Final = 65_536


class Proxy:
    """Forwards to the server of `url`; `proxied` is that URL by way of it."""

    def __init__(self, url: sa.URL) -> None:
        self.lost = 0
        self._target = url
        self._loses: Callable[[], bool] = lambda: False
        self._hangs_after: bytes | None = None
        self._loses_after = b""
        self._hung = threading.Event()
        self._open: set[asyncio.StreamWriter] = set()
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="proxy")
        self._thread.start()
        self._started.wait()

    @property
    def proxied(self) -> sa.URL:
        """Where clients connect."""
        return self._target.difference_update_query(["host", "port"]).set(host="127.0.0.1", port=self._port)

    @property
    def hangs(self) -> bool:
        """Whether it hangs, as it may do by itself after `hang_at_commit`."""
        return self._hung.is_set()

    def hang(self) -> None:
        """From now on nothing gets through, in either direction; no connection is closed, new ones wait."""
        self._call(self._hang)

    def hang_at_commit(self, after: bytes) -> None:
        """Hang when a COMMIT is sent in whose transaction these words were: the server waits for it, with all locks."""
        self._hangs_after = after

    def resume(self) -> None:
        """Let everything through again, what was kept first."""
        self._call(self._resume)

    def drop(self) -> None:
        """Close all connections on both sides, with what was kept."""
        self._call(self._drop)

    def lose_answers(self, loses: Callable[[], bool], *, after: bytes = b"") -> None:
        """Ask at each COMMIT, or those after these words, whether its answer is to be lost; `lost` counts them."""
        self._loses, self._loses_after = loses, after

    def close(self) -> None:
        """Close all connections and end."""
        self._call(self._stop.set)
        self._thread.join()

    def _call(self, what: Callable[[], None]) -> None:
        done = threading.Event()

        def call() -> None:
            what()
            done.set()

        self._loop.call_soon_threadsafe(call)
        done.wait(5)

    # --- in its thread --------------------------------------------------------------------------------------------

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._through = asyncio.Event()
        self._through.set()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self._port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stop.wait()
        server.close()
        self._resume()
        self._drop()
        await asyncio.gather(
            *(asyncio.all_tasks() - {asyncio.current_task()}),  # type: ignore[arg-type]
            return_exceptions=True,
        )

    def _hang(self) -> None:
        self._through.clear()
        self._hung.set()

    def _resume(self) -> None:
        self._hangs_after = None
        self._through.set()
        self._hung.clear()

    def _drop(self) -> None:
        for writer in self._open:
            writer.transport.abort()
        self._open.clear()

    async def _connected(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self._open.add(to_client)
        try:
            await self._through.wait()
            server, to_server = await self._connect()
        except OSError:  # the server is down, and so is this connection
            to_client.transport.abort()
            self._open.discard(to_client)
            return
        self._open.add(to_server)
        lost = asyncio.Event()
        try:
            await asyncio.gather(
                self._pump(client, to_server, asked=lost), self._pump(server, to_client, until=lost)
            )
        finally:
            for writer in (to_client, to_server):
                writer.transport.abort()
                self._open.discard(writer)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host = self._target.host or str(self._target.query.get("host", "localhost"))
        port = self._target.port or 5432
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(host, port)

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        *,
        asked: asyncio.Event | None = None,
        until: asyncio.Event | None = None,
    ) -> None:
        hangs = loses = False
        with suppress(OSError):
            while data := await source.read(_CHUNK):
                if asked is not None:
                    hangs |= self._hangs_after is not None and self._hangs_after in data
                    loses |= self._loses_after in data
                    if COMMIT in data:
                        if hangs:
                            self._hang()
                        if loses and self._loses():
                            asked.set()
                        hangs = loses = False
                await self._through.wait()
                if until is not None and until.is_set():
                    self.lost += 1
                    break
                sink.write(data)
                await sink.drain()
        sink.transport.abort()


@contextmanager
def proxy_before(url: sa.URL) -> Iterator[Proxy]:
    """A proxy, closed at the end of the block."""
    made = Proxy(url)
    try:
        yield made
    finally:
        made.close()
