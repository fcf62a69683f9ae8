"""What the WebSockets of :mod:`.pcm` and :mod:`.realtime` have in common."""

import asyncio

from fastapi import WebSocketDisconnect

from hyperconformer.serve.batcher import LiveStream
from hyperconformer.serve.limits import TOKEN_SUBPROTOCOL, Refusal

# Close codes of WebSockets, RFC 6455 and IANA's registry.
DONE, UNSUPPORTED, IDLE, FAILED, RESTART, FULL = 1000, 1003, 1008, 1011, 1012, 1013
PIECE_BYTES = 2**17
RESTARTING = "the server is being restarted: connect again"


class Closing(Exception):
    """Ends a connection, after telling the client why.

    Arguments
    ---------
    close_code : int
        Of the WebSocket.
    message : str
        What is wrong and what to do.
    code : str
        The error in a word, for programs.
    """

    def __init__(self, close_code, message, code):
        super().__init__(message)
        self.close_code, self.code = close_code, code


class Connection:
    """A client's WebSocket, and its utterances one after the other.

    A subclass has ``listen()``, which takes what the client sends until it says that
    no more comes; ``report(live)``, which sends what is recognised of an utterance;
    and ``send_error(message, code)``.

    Arguments
    ---------
    websocket : fastapi.WebSocket
        Not yet accepted.
    service : hyperconformer.serve.app.Service
        The server.
    """

    def __init__(self, websocket, service):
        self.websocket, self.service = websocket, service
        self.decoder = None  # of its bytes; a subclass has one
        self.live = None  # the utterance that takes samples
        self.lives = asyncio.Queue()  # those that are to be reported, in order
        self.has_slot = False

    async def run(self):
        """Serve the client until one side ends it.

        Raises
        ------
        Refusal
            If there is no room; the WebSocket is not accepted then.
        """
        self.service.check_running()
        self.service.streams.check()
        # A browser that offers subprotocols wants one of them back.
        offered = self.websocket.scope["subprotocols"]
        names = [name for name in offered if not name.startswith(TOKEN_SUBPROTOCOL)]
        await self.websocket.accept(names[0] if names else None)
        self.service.connections.add(self)
        tasks = [
            asyncio.create_task(self._report_all()),
            asyncio.create_task(self._listen_to_end()),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            (error, *_) = filter(None, (task.exception() for task in done))
            if isinstance(error, Closing):
                await self._close(error)
            elif not isinstance(error, WebSocketDisconnect):
                raise error
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.service.connections.discard(self)
            self._drop_all()
            if self.has_slot:
                self.service.streams.give_back()
                self.service.metrics.streams.dec()

    async def _listen_to_end(self):
        closing = Closing(DONE, "", "")
        try:
            await self.listen()
        except Closing as error:  # after what has been said so far
            closing = error
            self.cut()
        self.lives.put_nowait(closing)

    async def _report_all(self):
        """Report each utterance; ends with an exception, whatever happens."""
        while not isinstance(live := await self.lives.get(), Closing):
            try:
                await self.report(live)
            except WebSocketDisconnect:
                raise
            except Exception as error:
                message = f"recognition failed: {error}"
                raise Closing(FAILED, message, "server_error") from error
        raise live

    async def _close(self, closing):
        try:
            async with asyncio.timeout(self.service.limits.idle_s):
                if closing.close_code != DONE:
                    self.service.metrics.refused.labels(closing.code).inc()
                    await self.send_error(str(closing), closing.code)
                # The reason of a close frame has at most 123 bytes.
                reason = str(closing).encode()[:123].decode(errors="ignore")
                await self.websocket.close(closing.close_code, reason)
        except (WebSocketDisconnect, RuntimeError, TimeoutError):
            pass  # The client is gone, or reads nothing.

    def _drop_all(self):
        lives = [self.live]
        while not self.lives.empty():
            lives.append(self.lives.get_nowait())
        for live in lives:
            if isinstance(live, LiveStream):
                live.drop()

    async def receive(self):
        """The next message, as str or bytes.

        Raises
        ------
        Closing
            If none comes for too long.
        WebSocketDisconnect
            If the client is gone.
        """
        limit_s = self.service.limits.idle_s
        try:
            async with asyncio.timeout(limit_s):
                message = await self.websocket.receive()
        except TimeoutError as error:
            text = f"nothing came for {limit_s:g} s"
            raise Closing(IDLE, text, "idle_timeout") from error
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message["code"])
        text = message.get("text")
        return message["bytes"] if text is None else text

    async def send(self, message):
        """Send a JSON object.

        Raises
        ------
        WebSocketDisconnect
            If the client is gone, or reads nothing for too long.
        """
        try:
            async with asyncio.timeout(self.service.limits.idle_s):
                await self.websocket.send_json(message)
        except TimeoutError as error:
            raise WebSocketDisconnect(FAILED) from error

    def begin(self, endpoint_s=None, search=None):
        """Begin an utterance; the first one takes one of the server's places.

        Raises
        ------
        Closing
            If none is free.
        """
        if not self.has_slot:
            try:
                self.service.streams.take()
            except Refusal as error:
                raise Closing(FULL, error.detail, error.code) from error
            self.has_slot = True
            self.service.metrics.streams.inc()
        self.live = self.service.batcher.open(endpoint_s, search)
        self.lives.put_nowait(self.live)
        return self.live

    async def hear(self, data):
        """Feed bytes to the running utterance, so that others are served in between."""
        for begin in range(0, len(data), PIECE_BYTES):
            piece = self.decoder.push(data[begin : begin + PIECE_BYTES])
            await self.live.feed(piece)

    def drain(self):
        """End after the running utterance."""
        if self.live is not None:
            self.live.finish_at_pause()
        self.lives.put_nowait(Closing(RESTART, RESTARTING, "restart"))

    def cut(self):
        """End now, with what has been heard of the running utterance."""
        if self.live is not None:
            self.live.finish()
