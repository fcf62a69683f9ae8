"""What an hour of a stream costs: its last minute beside the first one of another.

A slow moment of the machine shall not look like a stream that slows down. So the last
minute's chunks are timed in turn with those of a stream that begins at that moment.
What came before is heard many chunks to a step, which leaves the state of single steps
(tests/transcribe/test_streaming.py holds that).
"""

import pathlib
import tempfile

import torch
from hyperpyyaml import load_hyperpyyaml

from benchmarks.timing import Row, seconds_of, spread
from hyperconformer.config import read_config
from hyperconformer.core.state import StreamState, prefixed, within
from hyperconformer.transcribe.streaming import StreamingModel

HPARAMS = pathlib.Path(__file__).resolve().parents[1] / "recipes/LibriSpeech/hparams"
CHUNK_MS, LEFT_MS, HOUR_S, AT_ONCE = 640, 5120, 3600, 16
# Recipe, changes, left context: the shared settings of the recipes, 10 layers of 144.
MODELS = {
    "hypermixing": ("streaming_hypermixing", {}, None),
    "hyperglu": ("streaming_hyperglu", {}, None),
    "RoPEMHA": ("fragments/streaming", {"attention_type": "RoPEMHA"}, LEFT_MS),
    "linear_attention": (
        "fragments/streaming",
        {"attention_type": "linear_attention", "mixer_options": {"causal": True}},
        None,
    ),
}


def streaming_model(recipe, changes, left_ms):
    """A LibriSpeech streaming recipe's model, untrained."""
    with tempfile.TemporaryDirectory() as folder:
        places = {"data_folder": "", "output_folder": folder}
        text = read_config(HPARAMS / f"{recipe}.yaml", {**places, **changes})
        config = load_hyperpyyaml(text)
    return StreamingModel(config["extractor"], config["recognizer"], CHUNK_MS, left_ms)


class Listener:
    """One stream of noise.

    Arguments
    ---------
    model : hyperconformer.transcribe.streaming.StreamingModel
        What hears it.
    """

    def __init__(self, model):
        self.model, self.state = model, model.init_state(1)

    def hear_chunk(self):
        """As many samples as make a chunk, recognised."""
        noise = 0.1 * torch.randn(self.model.chunk_features * self.model.hop)
        _, self.state = self.model.feed(self.state, [noise])

    @torch.inference_mode()
    def skip_chunks(self, count):
        """As much noise as makes ``count`` chunks, from the features on."""
        model, after = self.model, within("model", self.state.tensors)
        while count > 0:
            frames = min(count, AT_ONCE) * model.chunk_features
            noise = torch.randn(1, frames, len(model.extractor.mean))
            _, _, after = model.recognizer.step(
                noise, torch.tensor([frames]), model.chunk, after
            )
            count -= AT_ONCE
        tensors = {**self.state.tensors, **prefixed("model", after)}
        self.state = StreamState(model.model_id, tensors)


def cost_of_an_hour(model, name, audio_s=HOUR_S):
    """Time a stream's last minute beside the first minute of another.

    Arguments
    ---------
    model : hyperconformer.transcribe.streaming.StreamingModel
        What hears both.
    name : str
        Its name.
    audio_s : float
        How long the first stream has lasted in the end, more than a minute.

    Returns
    -------
    Row
        Milliseconds a chunk, ``peer`` the stream that begins; ``kept_bytes`` is the
        size of the state.
    """
    chunk_s = model.chunk_features * model.hop / model.sample_rate_hz
    minute, chunks = round(60 / chunk_s), round(audio_s / chunk_s)
    old, new, pairs = Listener(model), Listener(model), []
    old.skip_chunks(chunks - minute)
    for listener in (old, new):
        listener.hear_chunk()  # Not timed: the first call of all allocates.
    for index in range(minute):
        order = (old, new) if index % 2 else (new, old)
        times = {listener: seconds_of(listener.hear_chunk) for listener in order}
        pairs.append((times[old], times[new]))
    last = spread([1e3 * own for own, _ in pairs])
    first = spread([1e3 * other for _, other in pairs])
    ratio = spread([other / own for own, other in pairs])
    return Row(
        "streaming",
        f"8M, chunks of {1000 * chunk_s:g} ms",
        f"minute {round(audio_s / 60)}",
        name,
        chunks * model.chunk.chunk_frames,
        peer="minute 1",
        rounds=minute,
        **{f"{key}_ms": value for key, value in last._asdict().items()},
        **{f"peer_{key}_ms": value for key, value in first._asdict().items()},
        **{f"ratio_{key}": value for key, value in ratio._asdict().items()},
        kept_bytes=old.state.num_bytes,
        peer_kept_bytes=new.state.num_bytes,
    )
