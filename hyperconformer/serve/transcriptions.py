"""OpenAI's ``POST /v1/audio/transcriptions``: whole recordings."""

import asyncio
import copy
import json
import math
import shutil
import tempfile
import threading
import time
import zlib
from typing import Annotated, Literal

from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse

from hyperconformer.audio import AudioError, read_blocks
from hyperconformer.serve.limits import Refusal, error_body, split_hotwords
from hyperconformer.transcribe.formats import cues, to_srt, to_text, to_vtt

router = APIRouter()
PLAIN = {"text": to_text, "srt": to_srt, "vtt": to_vtt}
# What is cut where is this server's own matter, as with "auto".
KNOWN = {
    *("file", "model", "language", "prompt", "keywords[]", "response_format"),
    *("temperature", "stream", "timestamp_granularities[]", "chunking_strategy"),
}
UNDETERMINED = "und"  # ISO 639


@router.post("/v1/audio/transcriptions")
async def transcribe(
    request: Request,
    file: Annotated[UploadFile, File()],
    model: Annotated[str, Form()],
    language: Annotated[str | None, Form()] = None,
    prompt: Annotated[str, Form()] = "",
    keywords: Annotated[list[str] | None, Form(alias="keywords[]")] = None,
    response_format: Annotated[
        Literal["json", "text", "srt", "verbose_json", "vtt"], Form()
    ] = "json",
    temperature: Annotated[float, Form(ge=0, le=0)] = 0.0,
    stream: Annotated[bool, Form()] = False,
    granularities: Annotated[
        list[Literal["word", "segment"]] | None,
        Form(alias="timestamp_granularities[]"),
    ] = None,
    chunking_strategy: Annotated[Literal["auto"] | None, Form()] = None,
):
    """Recognise a recording."""
    service = request.app.state.service
    service.check_running()
    service.check_model(model, service.asr_name)
    form = await request.form()
    unknown = set(form) - KNOWN
    if unknown:
        names = ", ".join(sorted(unknown))
        lists = [f"{name}[]" for name in sorted(unknown) if f"{name}[]" in KNOWN]
        hint = f"; did you mean {', '.join(lists)}?" if lists else ""
        raise Refusal(
            400, f"unsupported: {names}{hint}", "unsupported_parameter", names
        )
    if len(form.getlist("file")) > 1:
        raise Refusal(400, "expected one file, got several", param="file")
    if file.size == 0:
        text = f"{file.filename or 'file'} is empty: it has no bytes"
        raise Refusal(400, text, "invalid_audio", "file")
    if granularities is not None and response_format != "verbose_json":
        raise Refusal(
            400,
            "timestamp_granularities need response_format verbose_json, got "
            f"{response_format}",
            param="timestamp_granularities",
        )
    if stream and response_format not in ("json", "text"):
        raise Refusal(
            400,
            f"stream needs response_format json or text, got {response_format}",
            param="stream",
        )
    job = Job(service, file, split_hotwords(prompt, keywords))
    if stream:
        return StreamingResponse(job.events(), media_type="text/event-stream")
    found = await job.run()
    if response_format in PLAIN:
        return PlainTextResponse(PLAIN[response_format](file.filename, found))
    body = {"text": found.text, "usage": _usage(found)}
    if response_format == "verbose_json":
        body |= _details(found, language, granularities or ["segment"])
    return JSONResponse(body)


class Job:
    """A recording that is recognised on the service's threads for files.

    Arguments
    ---------
    service : hyperconformer.serve.app.Service
        The server.
    file : fastapi.UploadFile
        The recording.
    hotwords : list of str
        Words or phrases to favour.

    Raises
    ------
    Refusal
        If too many are at work or waiting.
    """

    def __init__(self, service, file, hotwords):
        self.service, self.file, self.hotwords = service, file, hotwords
        self.unwanted = threading.Event()
        service.files.take()

    async def run(self, on_text=None):
        """Recognise.

        Arguments
        ---------
        on_text : callable, optional
            As for :meth:`hyperconformer.transcribe.offline.ASR.transcribe_blocks`,
            called on another thread.

        Returns
        -------
        hyperconformer.core.words.Transcription

        Raises
        ------
        Refusal
            If the recording or a hot word cannot be used.
        """
        begin, loop = time.monotonic(), asyncio.get_running_loop()
        pool = self.service.file_pool
        try:
            found = await loop.run_in_executor(pool, self._recognise, on_text)
        finally:
            self.unwanted.set()
            self.service.files.give_back()
        self.service.metrics.file_s.observe(time.monotonic() - begin)
        self.service.metrics.audio_s.labels("files").inc(found.duration_s)
        return found

    def events(self):
        """Begin to recognise; the text comes as server-sent events."""
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue()

        def tell(text):
            loop.call_soon_threadsafe(pieces.put_nowait, text)

        work = asyncio.ensure_future(self.run(tell))
        work.add_done_callback(lambda _: pieces.put_nowait(None))
        return self._events(work, pieces)

    async def _events(self, work, pieces):
        try:
            while (text := await pieces.get()) is not None:
                yield _event({"type": "transcript.text.delta", "delta": text})
            try:
                found = await work
            except Refusal as error:
                yield _event(error_body(error))
            else:
                done = {"type": "transcript.text.done", "text": found.text}
                yield _event({**done, "usage": _usage(found)})
            yield "data: [DONE]\n\n"
        finally:  # also where the client has gone
            self.unwanted.set()

    def _recognise(self, on_text):
        asr = copy.copy(self.service.asr)  # with a search of its own
        try:
            search = self.service.new_search(asr, self.hotwords)
        except ValueError as error:
            raise Refusal(400, str(error), "invalid_hot_word", "prompt") from error
        if search is not None:
            asr.search = search
        with tempfile.NamedTemporaryFile() as copied:
            shutil.copyfileobj(self.file.file, copied)
            copied.flush()
            blocks = self._limited(read_blocks(copied.name, asr.sample_rate_hz))
            try:
                return asr.transcribe_blocks(blocks, on_text)
            except ValueError as error:
                text = str(error).replace(copied.name, self.file.filename or "file")
                if isinstance(error, AudioError):
                    text += "; known are WAV, FLAC, OGG, Opus and MP3"
                raise Refusal(400, text, "invalid_audio", "file") from error

    def _limited(self, blocks):
        """The blocks, unless they are too many or nobody wants them any more."""
        limit_s, samples = self.service.limits.audio_s, 0
        for block in blocks:
            samples += len(block)
            if samples > limit_s * self.service.asr.sample_rate_hz:
                raise Refusal(
                    413,
                    f"the recording lasts more than {limit_s:g} s: send it in parts",
                    "audio_too_long",
                    "file",
                )
            if self.unwanted.is_set():
                raise Refusal(499, "the client is gone", "client_closed_request")
            yield block


def _event(body):
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def _usage(found):
    return {"type": "duration", "seconds": round(found.duration_s, 3)}


def _details(found, language, granularities):
    """What verbose_json has beside the text.

    Of OpenAI's fields of a segment those are left out that this recogniser has nothing
    for: ``no_speech_prob``, ``seek`` and ``tokens``.
    """
    details = {
        "task": "transcribe",
        "language": language or UNDETERMINED,
        "duration": round(found.duration_s, 3),
    }
    if "word" in granularities:
        details["words"] = [
            {
                "word": word.text,
                "start": round(word.start_s, 3),
                "end": round(word.end_s, 3),
                "probability": round(word.confidence, 4),
            }
            for word in found.words
        ]
    if "segment" in granularities:
        details["segments"] = [
            _segment(index, cue) for index, cue in enumerate(cues(found.words))
        ]
    return details


def _segment(index, words):
    text = " ".join(word.text for word in words)
    log_probs = [math.log(max(word.confidence, 1e-30)) for word in words]
    size = len(text.encode())
    return {
        "id": index,
        "start": round(words[0].start_s, 3),
        "end": round(words[-1].end_s, 3),
        "text": text,
        "temperature": 0.0,
        "avg_logprob": round(sum(log_probs) / len(log_probs), 4),
        "compression_ratio": round(size / len(zlib.compress(text.encode())), 4),
    }
