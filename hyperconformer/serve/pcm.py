"""A plain WebSocket: 16-bit PCM in, JSON lines out.

The client sends mono samples, little-endian, in binary messages of any length, and the
text ``end`` after the last one. For each chunk it gets an object:

>>> {"words": [{"text": "TURN", "start_s": 0.24, "end_s": 0.44, "confidence": 0.98}],
...  "rest": "ON", "ended": False, "heard_s": 0.64}  # doctest: +SKIP

``words`` are new final ones, ``rest`` may still change, ``ended`` says that the
utterance is over, and ``heard_s`` how much has been recognised. ``{"error": ...}``
comes before the server closes the WebSocket because of an error.
"""

import dataclasses
import io

import numpy as np
import soundfile
from fastapi import APIRouter, WebSocket

from hyperconformer.audio import Resampler, as_samples
from hyperconformer.serve.connection import UNSUPPORTED, Closing, Connection
from hyperconformer.serve.limits import Refusal

router = APIRouter()
END = "end"


@router.websocket("/v1/stream")
async def stream(websocket: WebSocket, sample_rate: int | None = None):
    """Recognise a stream of PCM."""
    unknown = sorted(set(websocket.query_params) - {"sample_rate"})
    if unknown:
        names = ", ".join(unknown)
        raise Refusal(
            400,
            f"unsupported: {names}; sample_rate is the only parameter",
            "unsupported_parameter",
            names,
        )
    await PCMConnection(websocket, websocket.app.state.service, sample_rate).run()


class PCMConnection(Connection):
    """A client that sends PCM.

    Arguments
    ---------
    websocket : fastapi.WebSocket
        Not yet accepted.
    service : hyperconformer.serve.app.Service
        The server.
    sample_rate_hz : int, optional
        Of the client's samples; None = the model's.

    Raises
    ------
    Refusal
        If the rate is out of range.
    """

    def __init__(self, websocket, service, sample_rate_hz=None):
        super().__init__(websocket, service)
        rate_hz = service.check_streaming().model.sample_rate_hz
        try:
            given_hz = rate_hz if sample_rate_hz is None else sample_rate_hz
            self.decoder = Decoder("pcm", given_hz, rate_hz)
        except ValueError as error:
            raise Refusal(400, str(error), param="sample_rate") from error

    async def listen(self):
        """Take samples until the text ``end``."""
        while (message := await self.receive()) != END:
            if isinstance(message, str):
                raise Closing(
                    UNSUPPORTED,
                    "expected 16-bit PCM in binary messages, or the text "
                    f"{END!r} after the last one, got the text {message[:40]!r}",
                    "invalid_message",
                )
            if self.live is None:
                self.begin()
            await self.hear(message)
        live = self.live or self.begin()
        await live.feed(self.decoder.finish())
        live.finish()
        if self.decoder.is_torn:  # said after what there is
            raise Closing(
                UNSUPPORTED, "the PCM data end within a 16-bit sample", "invalid_audio"
            )

    async def report(self, live):
        """Send an object for each partial."""
        shown = 0
        async for partial in live:
            await self.send(
                {
                    "words": [_as_json(word) for word in partial.words[shown:]],
                    "rest": partial.rest,
                    "ended": partial.ended,
                    "heard_s": round(partial.heard_s, 3),
                }
            )
            shown = 0 if partial.ended else len(partial.words)

    async def send_error(self, message, code):
        """Say what is wrong."""
        await self.send({"error": {"message": message, "code": code}})


def _as_json(word):
    """A word, its numbers rounded."""
    fields = dataclasses.asdict(word).items()
    return {k: v if isinstance(v, str) else round(v, 4) for k, v in fields}


class Decoder:
    """Bytes of a client to samples at the model's rate, piece by piece.

    Arguments
    ---------
    kind : str
        ``"pcm"``, 16 bits little-endian, or G.711's ``"pcmu"`` or ``"pcma"``.
    rate_hz : int
        The client's rate.
    sample_rate_hz : int
        The model's.

    Raises
    ------
    ValueError
        If a rate is out of range.

    Example
    -------
    >>> decoder = Decoder("pcm", 16000, 16000)
    >>> decoder.push(b"\\x00\\x40\\x00"), decoder.push(b"\\x80")
    (array([0.5], dtype=float32), array([-1.], dtype=float32))
    """

    def __init__(self, kind, rate_hz, sample_rate_hz):
        self.kind, self.resampler = kind, Resampler(rate_hz, sample_rate_hz)
        self.odd = b""

    @property
    def is_torn(self):
        """Whether half a sample has come last."""
        return len(self.odd) > 0

    def push(self, data):
        """Take the next bytes, any number.

        Returns
        -------
        numpy.ndarray
            (N,) float32.
        """
        if self.kind != "pcm":
            return self.resampler.push(_G711[self.kind][np.frombuffer(data, np.uint8)])
        data = self.odd + data
        whole = len(data) // 2 * 2
        self.odd = data[whole:]
        pcm = np.frombuffer(data, "<i2", count=whole // 2)
        return self.resampler.push(as_samples(pcm).numpy())

    def finish(self):
        """The samples that are left when no more bytes come."""
        return self.resampler.finish()


def _table(subtype):
    """The sample of each of the 256 bytes."""
    every_byte = io.BytesIO(bytes(range(256)))
    raw = {"format": "RAW", "subtype": subtype, "channels": 1, "samplerate": 8000}
    return soundfile.read(every_byte, dtype="float32", **raw)[0]


_G711 = {"pcmu": _table("ULAW"), "pcma": _table("ALAW")}
