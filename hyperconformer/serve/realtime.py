"""OpenAI's Realtime API in its transcription form, over a WebSocket.

An utterance, an ``item`` there, ends where the client commits its audio or, with
``turn_detection``, where it is followed by silence. Words are sent as deltas while it
is being spoken, each when it can change no more.
"""

import asyncio
import base64
import binascii
import math
import uuid
from typing import Any, Literal

import pydantic
from fastapi import APIRouter, WebSocket

from hyperconformer.serve.connection import Connection
from hyperconformer.serve.limits import split_hotwords
from hyperconformer.serve.pcm import Decoder

router = APIRouter()
PCM_HZ, G711_HZ = 24000, 8000
TRANSCRIPTION = "conversation.item.input_audio_transcription"


@router.websocket("/v1/realtime")
async def realtime(websocket: WebSocket, model: str | None = None):
    """Recognise the utterances of a session."""
    service = websocket.app.state.service
    connection = RealtimeConnection(websocket, service)
    service.check_model(model, service.streaming_name)
    await connection.run()


class _Part(pydantic.BaseModel):
    """What is not known is refused: it would have no effect."""

    model_config = pydantic.ConfigDict(extra="forbid")


class Format(_Part):
    """How samples are written."""

    type: Literal["audio/pcm", "audio/pcmu", "audio/pcma"] = "audio/pcm"
    rate: int | None = None

    @pydantic.model_validator(mode="after")
    def fill_rate(self):
        """The protocol's rate; 16-bit PCM may have another."""
        fixed = PCM_HZ if self.type == "audio/pcm" else G711_HZ
        if self.rate is None:
            self.rate = fixed
        elif self.type != "audio/pcm" and self.rate != fixed:
            raise ValueError(f"{self.type} has {fixed} Hz, got {self.rate}")
        Decoder("pcm", self.rate, PCM_HZ)  # A rate that is none says so.
        return self


class Transcription(_Part):
    """What recognises, and what it is told before."""

    model: str | None = None
    language: str | None = None
    prompt: str | None = None
    keywords: list[str] | None = None


class ServerVAD(pydantic.BaseModel):
    """Silence that ends an utterance.

    The recogniser's blanks are the silence. What concerns another detector or answers
    of a language model (``threshold``, ``create_response``) is left out.
    """

    type: Literal["server_vad"]
    silence_duration_ms: float | None = pydantic.Field(None, gt=0, allow_inf_nan=False)


class Input(_Part):
    """``session.audio.input``."""

    format: Format = Format()
    transcription: Transcription = Transcription()
    turn_detection: ServerVAD | None = None
    noise_reduction: None = None


class Audio(_Part):
    """``session.audio``."""

    input: Input = Input()


class Session(_Part):
    """What ``session.update`` may set."""

    type: Literal["transcription"]
    audio: Audio = Audio()
    include: list[str] | None = pydantic.Field(None, max_length=0)


class Event(pydantic.BaseModel):
    """What a client sends."""

    type: str
    event_id: str | None = None
    session: Any = None
    audio: Any = None


class ClientError(ValueError):
    """What a client does wrong, without harm to its session."""

    def __init__(self, message, code=None, param=None):
        super().__init__(message)
        self.code, self.param = code, param


class RealtimeConnection(Connection):
    """A client's session.

    Arguments
    ---------
    websocket : fastapi.WebSocket
        Not yet accepted.
    service : hyperconformer.serve.app.Service
        The server.

    Raises
    ------
    Refusal
        If the server's model cannot stream.
    """

    def __init__(self, websocket, service):
        super().__init__(websocket, service)
        self.asr = service.check_streaming()
        self.model_name = service.streaming_name
        self.id = _new_id("sess")
        silence_ms = 1000 * self.asr.endpoint_s
        self.input = Input(
            transcription=Transcription(model=self.model_name),
            turn_detection=ServerVAD(type="server_vad", silence_duration_ms=silence_ms),
        )
        self.decoder = self._new_decoder()
        self.search = None  # with the session's hot words
        self.heard_s = 0.0  # before the utterance that is being heard
        self.last_item = None

    async def listen(self):
        """Take the client's events; returns never, as no event ends a session."""
        await self._send_session("session.created")
        handlers = {
            "session.update": self._update,
            "input_audio_buffer.append": self._append,
            "input_audio_buffer.commit": self._commit,
            "input_audio_buffer.clear": self._clear,
        }
        while True:
            message, event = await self.receive(), None
            try:
                event = _parse(message)
                if event.type not in handlers:
                    raise ClientError(
                        f"unknown event {event.type!r}; known: {', '.join(handlers)}",
                        "unknown_event",
                        "type",
                    )
                await handlers[event.type](event)
            except ClientError as error:
                await self._send_client_error(error, event)

    async def _update(self, event):
        given = event.session
        if isinstance(given, dict):  # Clients send back what they were given.
            given = {k: v for k, v in given.items() if k not in ("id", "object")}
        try:
            session = Session.model_validate(given)
        except pydantic.ValidationError as error:
            raise _explain(error) from error
        changed = session.audio.input
        names = changed.model_fields_set
        model = changed.transcription.model
        if model not in (None, self.model_name):
            raise ClientError(
                f"there is no model {model!r} here, but {self.model_name!r}",
                "model_not_found",
                "session.audio.input.transcription.model",
            )
        changed.transcription.model = self.model_name
        vad = changed.turn_detection
        if vad is not None and vad.silence_duration_ms is None:
            vad.silence_duration_ms = 1000 * self.asr.endpoint_s
        if "transcription" in names:
            # With a large lexicon this takes a second, in which others are served.
            self.search = await asyncio.to_thread(
                self._new_search, changed.transcription
            )
        before = self.input.format
        self.input = self.input.model_copy(
            update={name: getattr(changed, name) for name in names}
        )
        if self.live is not None:
            self.live.stream.endpoint_s = self._endpoint_s()
        if self.input.format != before:
            if self.live is not None:
                await self.live.feed(self.decoder.finish())
            self.decoder = self._new_decoder()
        await self._send_session("session.updated")

    def _new_search(self, transcription):
        """A search for the hot words of the next utterances; None without any."""
        hotwords = split_hotwords(transcription.prompt, transcription.keywords)
        try:
            return self.service.new_search(self.asr, hotwords)
        except ValueError as error:
            raise ClientError(
                str(error), "invalid_hot_word", "session.audio.input.transcription"
            ) from error

    async def _append(self, event):
        if not isinstance(event.audio, str):
            raise ClientError(
                "input_audio_buffer.append needs `audio`, base64 of the samples",
                "invalid_value",
                "audio",
            )
        try:
            data = base64.b64decode(event.audio, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ClientError(
                f"`audio` is no base64: {error}", "invalid_value", "audio"
            ) from error
        if self.live is None:
            self._begin()
        await self.hear(data)

    async def _commit(self, event):
        live = self.live
        if live is None or live.samples == 0:
            raise ClientError(
                "there is no audio to commit: append some before",
                "input_audio_buffer_commit_empty",
            )
        await live.feed(self.decoder.finish())
        live.committed = True
        live.finish()
        self._next_utterance(live)

    async def _clear(self, event):
        if self.live is not None:
            self.live.drop()
            self._next_utterance(self.live)
        await self._send("input_audio_buffer.cleared")

    def _next_utterance(self, live):
        self.live = None
        self.heard_s += live.duration_s
        self.decoder = self._new_decoder()

    def _begin(self):
        live = self.begin(self._endpoint_s(), self.search)
        live.begin_s, live.committed = self.heard_s, False

    async def report(self, live):
        """Send deltas, and items as they are completed."""
        item, begun, shown, end_s = _new_id("item"), False, 0, 0.0
        async for partial in live:
            detects = self.input.turn_detection is not None
            if detects and not begun and partial.text:
                begun = True
                await self._send(
                    "input_audio_buffer.speech_started",
                    item_id=item,
                    audio_start_ms=round(1000 * (live.begin_s + partial.start_s)),
                )
            if new := partial.words[shown:]:
                delta = " ".join(word.text for word in new)
                await self._send(
                    f"{TRANSCRIPTION}.delta",
                    item_id=item,
                    content_index=0,
                    delta=f" {delta}" if shown else delta,
                )
                shown = len(partial.words)
            if partial.ended:
                if begun:
                    await self._send(
                        "input_audio_buffer.speech_stopped",
                        item_id=item,
                        audio_end_ms=round(1000 * (live.begin_s + partial.heard_s)),
                    )
                # A stream's end in silence is no utterance, unless it was committed.
                if begun or not detects or live.committed:
                    await self._complete(item, partial, partial.heard_s - end_s)
                item, begun, shown = _new_id("item"), False, 0
                end_s = partial.heard_s

    async def _complete(self, item, partial, seconds):
        before, self.last_item = self.last_item, item
        await self._send(
            "input_audio_buffer.committed", item_id=item, previous_item_id=before
        )
        message = {
            "id": item,
            "object": "realtime.item",
            "type": "message",
            "status": "completed",
            "role": "user",
            "content": [{"type": "input_audio", "transcript": partial.text}],
        }
        for event in ("added", "done"):
            await self._send(
                f"conversation.item.{event}", item=message, previous_item_id=before
            )
        await self._send(
            f"{TRANSCRIPTION}.completed",
            item_id=item,
            content_index=0,
            transcript=partial.text,
            usage={"type": "duration", "seconds": round(seconds, 3)},
        )

    def _endpoint_s(self):
        vad = self.input.turn_detection
        return math.inf if vad is None else vad.silence_duration_ms / 1000

    def _new_decoder(self):
        kind, rate_hz = self.input.format.type, self.input.format.rate
        sample_rate_hz = self.asr.model.sample_rate_hz
        return Decoder(kind.removeprefix("audio/"), rate_hz, sample_rate_hz)

    async def _send(self, event, **fields):
        await self.send({"type": event, "event_id": _new_id("event"), **fields})

    async def _send_session(self, event):
        session = {
            "type": "transcription",
            "object": "realtime.transcription_session",
            "id": self.id,
            "audio": {"input": self.input.model_dump()},
        }
        await self._send(event, session=session)

    async def _send_client_error(self, error, event):
        self.service.metrics.refused.labels(error.code or "invalid_request").inc()
        await self._send(
            "error",
            error={
                "type": "invalid_request_error",
                "code": error.code,
                "message": str(error),
                "param": error.param,
                "event_id": None if event is None else event.event_id,
            },
        )

    async def send_error(self, message, code):
        """Say why the session ends."""
        error = {"type": "server_error", "code": code, "message": message}
        await self._send("error", error=error)


def _new_id(kind):
    return f"{kind}_{uuid.uuid4().hex}"


def _parse(message):
    """A client's event."""
    try:
        return Event.model_validate_json(message)
    except pydantic.ValidationError as error:
        raise ClientError(
            f"expected a JSON object with a `type`: {error.errors()[0]['msg']}",
            "invalid_json",
        ) from error


def _explain(error):
    """What is wrong with a session, in one line."""
    first = error.errors()[0]
    param = ".".join(["session", *map(str, first["loc"])])
    return ClientError(f"{param}: {first['msg']}", "invalid_value", param)
