"""A server in a thread, with tiny models that know the letters A to E."""

import asyncio
import contextlib
import pathlib
import socket
import threading
import time

import pytest
import torch
import uvicorn
from sentencepiece import SentencePieceProcessor
from served_speech import speech
from streaming_model import streaming_config

from hyperconformer.core.tokens import BLANK_INDEX
from hyperconformer.model.chunks import chunk_config
from hyperconformer.serve.app import (
    UVICORN,
    ImpatientProtocol,
    Service,
    create_app,
)
from hyperconformer.transcribe.offline import ASR
from hyperconformer.transcribe.streaming import (
    StreamingASR,
    StreamingModel,
)

CHUNK_MS = 160


@pytest.fixture(scope="session")
def tiny_asr(tiny_model):
    """Whole recordings."""
    return ASR.from_hparams(tiny_model)


@pytest.fixture(scope="session")
def tiny_streaming(tiny_model):
    """Streams in chunks of 160 ms."""
    file = pathlib.Path(tiny_model) / "tokenizer.model"
    tokenizer = SentencePieceProcessor(model_file=str(file))
    torch.manual_seed(5)
    config = streaming_config(
        vocab_size=tokenizer.vocab_size(), mixer_options={"normalize_by_frames": True}
    )
    extractor, recognizer = config["extractor"], config["recognizer"]
    _say_much(extractor, recognizer)
    model = StreamingModel(extractor, recognizer, CHUNK_MS)
    return StreamingASR(model, tokenizer, endpoint_s=0.2)


@pytest.fixture(scope="session")
def tiny_looking_ahead(tiny_streaming):
    """The same, with a right context of two frames."""
    model = tiny_streaming.model
    ahead = StreamingModel(
        model.extractor, model.recognizer, CHUNK_MS, right_context_ms=80
    )
    return StreamingASR(ahead, tiny_streaming.tokenizer, endpoint_s=0.2)


@torch.no_grad()
def _say_much(extractor, recognizer):
    """Let every token be said at times: an untrained head prefers one to all others."""
    head = recognizer.ctc_head
    head.weight.mul_(20)
    samples = torch.from_numpy(speech(64000, 9)).float()[None] / 2**15
    rule = chunk_config(CHUNK_MS, None, 40)
    encoded = recognizer(*extractor(samples), None, rule).encoded
    head.bias.sub_(head(encoded).mean((0, 1)))
    head.bias[BLANK_INDEX] += 1


@pytest.fixture
def serve(tiny_asr, tiny_streaming):
    """Starts servers; each ends with the test."""
    with contextlib.ExitStack() as stack:

        def start(asr=tiny_asr, streaming=tiny_streaming, **options):
            service = Service(asr, streaming, "tiny", "tiny-live", **options)
            return stack.enter_context(running(service))

        yield start


@contextlib.contextmanager
def running(service):
    """Serve in a thread; gives where."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            create_app(service),
            http=ImpatientProtocol,
            **UVICORN,
            log_level="warning",
            timeout_graceful_shutdown=1,
        )
        server, loop = uvicorn.Server(config), asyncio.new_event_loop()
        serving = server.serve([listener])
        thread = threading.Thread(target=loop.run_until_complete, args=(serving,))
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield Running(listener.getsockname()[1], service, loop)
        finally:
            server.should_exit = True
            thread.join()
            loop.close()


class Running:
    """Where a server listens, and what it is."""

    def __init__(self, port, service, loop):
        self.port, self.service, self.loop = port, service, loop
        self.http, self.ws = f"http://127.0.0.1:{port}", f"ws://127.0.0.1:{port}"
