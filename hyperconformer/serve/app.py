"""The server: what it holds, its routes, and how it begins and ends."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import functools
import os
import pathlib
import signal
import sys
import tempfile
import threading

import torch
import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import (
    RequestValidationError,
    WebSocketRequestValidationError,
)
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.supervisors import Multiprocess

from hyperconformer.hub.folder import DEFAULT_MODEL, DEFAULT_STREAMING_MODEL
from hyperconformer.search.lexicon import LexiconSearcher
from hyperconformer.search.ngram import hotword_search
from hyperconformer.serve import pcm, realtime, transcriptions
from hyperconformer.serve.batcher import Batcher
from hyperconformer.serve.limits import (
    Guard,
    Limits,
    Refusal,
    Slots,
    respond,
    respond_invalid,
)
from hyperconformer.serve.metrics import SHARED_FOLDER, Metrics
from hyperconformer.transcribe.offline import ASR
from hyperconformer.transcribe.streaming import StreamingASR

# How long a new connection may take to send the head of its request.
HEAD_S = 10
UVICORN = {
    # Ten minutes in one event of the Realtime API.
    "ws_max_size": 40 * 10**6,
    # Dead clients end by the idle limit. Their answer to a ping would stand behind
    # samples that are waited with.
    "ws_ping_interval": None,
    # It costs more than it saves on audio.
    "ws_per_message_deflate": False,
}
# Streams that a core carries in real time, with and without the search of a lexicon.
CARRIED = {True: 5, False: 40}
# How long a process may take to import what it needs.
START_S = 120
# How long connections get to be closed, after the utterances have been finished.
CLOSE_S = 5


@dataclasses.dataclass(frozen=True)
class Settings:
    """What ``hyperconformer serve`` is told.

    ``model``, ``device`` and ``trusted`` are as for
    :func:`hyperconformer.hub.folder.load_model`; without a model, the shipped ones.
    ``chunk_ms``, ``left_context_ms``, ``right_context_ms`` and ``endpoint_s`` are as
    for :meth:`hyperconformer.StreamingASR.from_hparams`, ``token`` and ``origins`` as
    for :class:`hyperconformer.serve.limits.Guard`.
    """

    model: str | None = None
    device: str = "cpu"
    trusted: bool = False
    chunk_ms: float | None = None
    left_context_ms: float | None = None
    right_context_ms: float | None = None
    endpoint_s: float = 1.0
    host: str = "127.0.0.1"
    port: int = 8000
    processes: int = 1
    token: str | None = None
    origins: tuple[str, ...] = ()
    limits: Limits = Limits()

    @property
    def asks_for_streams(self) -> bool:
        """Whether a setting is of streams alone."""
        lengths = self.chunk_ms, self.left_context_ms, self.right_context_ms
        return self.endpoint_s != Settings.endpoint_s or any(
            one is not None for one in lengths
        )


class Service:
    """What all connections of a process share.

    Arguments
    ---------
    asr : hyperconformer.transcribe.offline.ASR
        For whole recordings.
    streaming : StreamingASR or str
        For streams, or why there is none.
    asr_name, streaming_name : str
        What clients call them.
    limits : Limits
        What is taken.
    guard : Guard
        Who is let in.
    threads : int
        Batches of streams, and recordings, at work at once.
    """

    def __init__(
        self,
        asr,
        streaming,
        asr_name,
        streaming_name,
        limits=None,
        guard=None,
        threads=1,
    ):
        self.asr, self.streaming = asr, streaming
        self.asr_name, self.streaming_name = asr_name, streaming_name
        self.limits = limits or Limits()
        self.guard = guard or Guard(None, [])
        self.metrics = Metrics()
        has_lexicon = isinstance(getattr(streaming, "search", None), LexiconSearcher)
        carried = threads * CARRIED[has_lexicon]
        self.streams = Slots(self.limits.streams or carried, "streams")
        self.files = Slots(self.limits.files, "files")
        self.connections = set()
        self.is_draining = False
        self.batcher = Batcher(streaming, self.metrics, threads)
        self.file_pool = concurrent.futures.ThreadPoolExecutor(
            threads, "file", torch.set_num_threads, (1,)
        )

    def check_running(self):
        """Refuse what begins while the server ends."""
        if self.is_draining:
            raise Refusal(503, "the server is being restarted", "restart", retry_s=5)

    def check_streaming(self):
        """The recogniser of streams; a :class:`Refusal` where there is none."""
        if isinstance(self.streaming, str):
            raise Refusal(
                501, f"this model does not stream: {self.streaming}", "no_streaming"
            )
        return self.streaming

    def new_search(self, asr, hotwords):
        """A search that favours hot words; None without any, the recogniser's then.

        Raises
        ------
        ValueError
            If a hot word has characters that the recogniser cannot write.
        """
        if not hotwords:
            return None
        return hotword_search(
            asr.search, asr.ngram, asr.recognizer, asr.tokenizer, hotwords
        )

    def check_model(self, name, expected):
        """Refuse a model that is not here."""
        if name not in (None, expected):
            raise Refusal(
                404,
                f"there is no model {name!r} here, but {expected!r}",
                "model_not_found",
                "model",
            )

    async def drain(self):
        """Take nothing new, and let running utterances end within the limit."""
        self.is_draining = True
        for connection in list(self.connections):
            connection.drain()
        if not await self._wait_for_clients(self.limits.finish_s):
            for connection in list(self.connections):
                connection.cut()
            await self._wait_for_clients(CLOSE_S)

    async def _wait_for_clients(self, seconds):
        """Whether all streams and files have ended within the time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.connections or self.files.taken:
                    await asyncio.sleep(0.05)
                return True
        return False

    def close(self):
        """End the threads."""
        self.batcher.close()
        self.file_pool.shutdown(cancel_futures=True)


def load_service(settings):
    """A service as the settings want it.

    Raises
    ------
    FileNotFoundError, ValueError
        If the model cannot be loaded, or settings of streams do not fit it.
    """
    asr = ASR.from_hparams(settings.model, settings.device, settings.trusted)
    try:
        streaming = StreamingASR.from_hparams(
            settings.model,
            settings.chunk_ms,
            settings.left_context_ms,
            settings.device,
            settings.trusted,
            endpoint_s=settings.endpoint_s,
            right_context_ms=settings.right_context_ms,
        )
    except ValueError as error:
        # Recordings alone are served only where nobody asked for streams.
        if settings.asks_for_streams:
            raise
        streaming = str(error)
    names = [DEFAULT_MODEL, DEFAULT_STREAMING_MODEL]
    if settings.model is not None:
        names = [pathlib.Path(settings.model).name] * 2
    # One batch at a time fills a GPU.
    threads = _count_cores() // settings.processes if settings.device == "cpu" else 1
    return Service(
        asr,
        streaming,
        *names,
        limits=settings.limits,
        guard=Guard(settings.token, settings.origins),
        threads=max(threads, 1),
    )


def _count_cores():
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not everywhere
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def create_app(service):
    """The routes of a service.

    Arguments
    ---------
    service : Service
        What answers.

    Returns
    -------
    fastapi.FastAPI
    """

    @contextlib.asynccontextmanager
    async def lifespan(app):
        with _drained_first(service):
            yield
        service.close()

    app = FastAPI(
        title="HyperConformer",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        max_body_size=int(service.limits.upload_mb * 1e6),
        exception_handlers={
            HTTPException: respond,
            RequestValidationError: respond_invalid,
            WebSocketRequestValidationError: respond_invalid,
        },
    )
    app.state.service = service
    app.include_router(health)
    for router in (models, transcriptions.router, realtime.router, pcm.router):
        app.include_router(router, dependencies=[Depends(service.guard)])
    app.add_middleware(
        CORSMiddleware,
        allow_origins=service.guard.origins,
        allow_methods=["*"],
        allow_headers=["*"],
    )
    app.add_middleware(IdleLimit, seconds=service.limits.idle_s)
    return app


health, models = APIRouter(), APIRouter()


@health.get("/health")
async def report_health(request: Request):
    """Whether new streams are taken."""
    service = request.app.state.service
    status = "draining" if service.is_draining else "ok"
    taken, places = service.streams.taken, service.streams.count
    body = {"status": status, "streams": taken, "places": places}
    return JSONResponse(body, 503 if service.is_draining else 200)


@models.get("/metrics")
async def report_metrics(request: Request):
    """Counters in Prometheus' text form."""
    page, kind = request.app.state.service.metrics.page()
    return Response(page, media_type=kind)


@models.get("/v1/models")
async def list_models(request: Request):
    """What clients may name, as OpenAI lists it."""
    service = request.app.state.service
    names = sorted({service.asr_name, service.streaming_name})
    data = [{"id": n, "object": "model", "owned_by": "hyperconformer"} for n in names]
    return {"object": "list", "data": data}


class IdleLimit:
    """Refuses an upload in which nothing comes for too long.

    Arguments
    ---------
    app : ASGI application
        What takes the upload.
    seconds : float
        How long.
    """

    def __init__(self, app, seconds):
        self.app, self.seconds = app, seconds

    async def __call__(self, scope, receive, send):
        # What comes after the body is that the client has gone, whenever it goes.
        is_awaited = scope["type"] == "http"

        async def receive_soon():
            nonlocal is_awaited
            try:
                async with asyncio.timeout(self.seconds if is_awaited else None):
                    message = await receive()
            except TimeoutError as error:
                text = f"nothing came for {self.seconds:g} s"
                raise Refusal(408, text, "idle_timeout") from error
            is_awaited = is_awaited and message.get("more_body", False)
            return message

        await self.app(scope, receive_soon, send)


class ImpatientProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's protocol; a connection that sends no request is closed."""

    def connection_made(self, transport):
        """Begin to wait."""
        super().connection_made(transport)
        asyncio.get_running_loop().call_later(HEAD_S, self._close_silent, transport)

    def _close_silent(self, transport):
        if self.scope is None:
            transport.close()


@contextlib.contextmanager
def _drained_first(service):
    """Signals that end uvicorn, which closes all WebSockets, drain the service before.

    A second signal ends it at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # as in tests; only the main thread gets signals
        return
    loop = asyncio.get_running_loop()
    ends = {sig: signal.getsignal(sig) for sig in (signal.SIGINT, signal.SIGTERM)}
    draining = None

    async def drain(number):
        await service.drain()
        ends[number](number, None)

    def begin(number):
        nonlocal draining
        if draining is None:
            draining = loop.create_task(drain(number))
        else:
            ends[number](number, None)

    for number in ends:
        loop.add_signal_handler(number, begin, number)
    yield


def serve(settings):
    """Serve until a signal ends it.

    Arguments
    ---------
    settings : Settings
        What the command line says.

    Raises
    ------
    FileNotFoundError, ValueError
        If the model cannot be loaded.
    """
    _allow_connections()
    service = load_service(settings)
    if isinstance(service.streaming, str):
        print(f"hyperconformer: no streams: {service.streaming}", file=sys.stderr)
    options = {
        "host": settings.host,
        "port": settings.port,
        "http": ImpatientProtocol,
        "timeout_graceful_shutdown": CLOSE_S,
        **UVICORN,
    }
    if settings.processes == 1:
        uvicorn.run(create_app(service), **options)
        return
    service.close()
    with tempfile.TemporaryDirectory() as folder:
        os.environ[SHARED_FOLDER] = folder
        app = functools.partial(_load_app, settings)
        config = uvicorn.Config(
            app,
            factory=True,
            workers=settings.processes,
            # Who does not answer is killed, and nobody can while importing torch.
            timeout_worker_healthcheck=START_S,
            **options,
        )
        Multiprocess(config, sockets=[config.bind_socket()]).run()


def _load_app(settings):
    """The application of one of several processes."""
    return create_app(load_service(settings))


def _allow_connections():
    """Raise the limit of open files, of which each connection is one."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2**16 if hard == resource.RLIM_INFINITY else min(hard, 2**16)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
