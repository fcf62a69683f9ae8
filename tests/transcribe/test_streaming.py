"""Streamed equals offline, from samples to log-probabilities."""

import copy
import functools
import io
import math

import numpy as np
import pytest
import torch
from char_tokenizer import make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from speechbrain.decoders.ctc import ctc_greedy_decode
from streaming_model import streaming_config

from hyperconformer.audio import AudioWarning
from hyperconformer.core.state import StreamState
from hyperconformer.lm.ngram import train_arpa
from hyperconformer.model.chunks import chunk_config
from hyperconformer.model.level import init_running_level
from hyperconformer.search.ctc_beam import CTCSearcher
from hyperconformer.search.joint import JointSearcher
from hyperconformer.search.lexicon import LexiconSearcher
from hyperconformer.transcribe.streaming import StreamingASR, StreamingModel, read_pcm

TOLERANCE = 1e-5
CHUNK_MS, LEFT_MS = 160, 320
MIXERS = {
    "hypermixing": {"normalize_by_frames": True},
    "hyperglu": {"block_size": 5},
    "linear_attention": {"causal": True},
    "summary_mixing": {},
    "windowed_summary_mixing": {"window_radius": 5},
    "RelPosMHAXL": {},
    "RoPEMHA": {},
    "regularMHA": {},
}


# Its sums forget nothing.
UNBOUNDED = {"linear_attention"}


@functools.cache
def model(mixer, unbounded=False, right_ms=0, **changes):
    torch.manual_seed(1)
    options = {"attention_type": mixer, "mixer_options": MIXERS[mixer]}
    config = streaming_config(**options, **changes)
    left_ms = None if unbounded or mixer in UNBOUNDED else LEFT_MS
    modules = config["extractor"], config["recognizer"]
    return StreamingModel(*modules, CHUNK_MS, left_ms, right_ms)


@torch.no_grad()
def offline(stream, samples):
    """(T, V) by the training form, which sees the whole utterance at once."""
    features, lengths = stream.extractor(samples[None])
    left_ms = None if stream.chunk.left_chunks is None else LEFT_MS
    rule = chunk_config(CHUNK_MS, left_ms, 40, 40 * stream.chunk.right_frames)
    return stream.recognizer(features, lengths, None, rule).ctc[0]


def speech(count):
    return 0.1 * torch.randn(count) * (1 + torch.arange(count) / 4000).sin()


@pytest.mark.parametrize("right_ms", [0, 200])
@pytest.mark.parametrize("mixer", MIXERS)
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_streamed_equals_offline_however_the_samples_are_cut(mixer, right_ms, data):
    """Batches of streams, each with its own length and cuts, none in step."""
    stream = model(mixer, right_ms=right_ms)
    size = data.draw(st.integers(1, 3))
    utterances = [speech(data.draw(st.integers(0, 12000))) for _ in range(size)]
    steps = data.draw(st.integers(1, 6))
    cuts = [
        sorted(data.draw(st.integers(0, len(u))) for _ in range(steps))
        for u in utterances
    ]
    state, begin, got = stream.init_state(size), [0] * size, [[] for _ in utterances]
    for step in range(steps + 1):
        end = [c[step] if step < steps else len(u) for c, u in zip(cuts, utterances)]
        pieces = [u[a:b] for u, a, b in zip(utterances, begin, end)]
        frames, state = stream.feed(state, pieces, last=step == steps)
        for row, new in zip(got, frames):
            row.append(new)
        begin = end
    for row, utterance in zip(got, utterances):
        expected = offline(stream, utterance)
        assert torch.cat(row).shape == expected.shape
        assert (torch.cat(row) - expected).abs().max() <= TOLERANCE


def test_an_offset_changes_no_stream():
    """Neither where it begins and ends nor where samples arrive one by one."""
    stream, samples = model("hypermixing"), speech(9017)
    outputs = []
    for constant in (0.0, 0.2):
        state, pieces = stream.init_state(1), []
        for piece in (samples + constant).split(777):
            frames, state = stream.feed(state, [piece])
            pieces += frames
        frames, _ = stream.feed(state, [samples[:0]], last=True)
        outputs.append(torch.cat(pieces + frames))
    assert (outputs[0] - outputs[1]).abs().max() < 1e-3


@pytest.mark.parametrize("right_ms", [0, 80])
def test_a_stream_with_a_running_level(right_ms):
    """Equals offline at any cut, of whatever volume, in company, and after a rest."""
    stream = model("hypermixing", right_ms=right_ms, normalization="running_level")
    utterances = [speech(9017), 0.01 * speech(7000)]
    # Two seconds of digital silence: the memory of the level must not depend on cuts.
    utterances[0] = torch.cat([torch.zeros(16000), utterances[0], torch.zeros(16000)])
    expected = [offline(stream, utterance) for utterance in utterances]
    state, got = stream.init_state(2), [[], []]
    for begin in range(0, 42000, 777):
        pieces = [u[begin : begin + 777] for u in utterances]
        frames, state = stream.feed(state, pieces, last=begin + 777 >= 42000)
        for row, new in zip(got, frames):
            row.append(new)
    for row, whole in zip(got, expected):
        assert (torch.cat(row) - whole).abs().max() <= TOLERANCE
    for gain in (0.03, 2.0):
        louder, _ = stream.feed(stream.init_state(1), [gain * utterances[1]], last=True)
        assert (louder[0] - expected[1]).abs().max() < 1e-3


def test_a_new_segment_keeps_the_level_and_a_new_stream_has_none():
    stream = model("hypermixing", normalization="running_level")
    _, state = stream.feed(stream.init_state(2), [speech(9000), speech(9000)])
    heard, fresh = state.tensors["extractor.level"], init_running_level(2)
    assert heard.isfinite().all()
    assert torch.equal(stream.forget(state).tensors["extractor.level"], heard)
    after = stream.reset(state, [1]).tensors["extractor.level"]
    assert torch.equal(after, torch.stack([heard[0], fresh[1]]))


def test_a_state_of_another_normalization_is_refused():
    other = model("hypermixing", normalization="running_level")
    with pytest.raises(ValueError, match="a model of other weights"):
        other.feed(model("hypermixing").init_state(1), [speech(10)])


@pytest.mark.parametrize("right_ms", [0, 80])
@pytest.mark.parametrize("extra", [0, 1, 39, 40, 41, 159, 160, 161, 199, 200])
def test_the_ragged_tail(extra, right_ms):
    stream = model("hypermixing", unbounded=True, right_ms=right_ms)
    samples = speech(2 * 2560 + extra)
    got, _ = stream.feed(stream.init_state(1), [samples], last=True)
    expected = offline(stream, samples)
    assert got[0].shape == expected.shape
    assert (got[0] - expected).abs().max() <= TOLERANCE


def test_an_end_is_taken_chunk_by_chunk_where_it_is_asked_for():
    """As a chunk may end a segment, after which the next one begins anew."""
    stream, samples = model("hypermixing", right_ms=400), speech(9000)
    whole, _ = stream.feed(stream.init_state(1), [samples], last=True)
    frames, state = stream.feed(
        stream.init_state(1), [samples], last=True, chunkwise=True
    )
    calls = 1
    while not state.tensors["closed"].all():
        more, state = stream.feed(state, [samples[:0]], last=True, chunkwise=True)
        assert 0 < len(more[0]) <= stream.chunk.chunk_frames
        frames, calls = [torch.cat([frames[0], more[0]])], calls + 1
    assert calls == 3 and torch.equal(frames[0], whole[0])


def test_a_stream_that_ends_takes_one_chunk_after_another(monkeypatch):
    tokenizer = make_tokenizer("A B C", "D E F G H")
    asr = StreamingASR(model("hypermixing", right_ms=400), tokenizer)
    open_stream, taken = asr.open(), []
    take = open_stream.take

    def record(frames, state, last):
        taken.append((len(frames), last))
        return take(frames, state, last)

    monkeypatch.setattr(open_stream, "take", record)
    open_stream.feed(speech(9000))
    partials = open_stream.close()
    assert [partial.ended for partial in partials] == [True]
    closing = taken[1:]
    assert len(closing) == 3 and all(0 < frames <= 4 for frames, _ in closing)
    assert [last for _, last in closing] == [False, False, True]


def test_one_sample_at_a_time():
    stream, samples = model("hypermixing"), speech(2700)
    state, got = stream.init_state(1), []
    for sample in samples:
        frames, state = stream.feed(state, [sample[None]])
        got += frames
    frames, state = stream.feed(state, [samples[:0]], last=True)
    got = torch.cat([*got, *frames])
    assert (got - offline(stream, samples)).abs().max() <= TOLERANCE


@pytest.mark.parametrize("right_ms", [0, 80])
@pytest.mark.parametrize("mixer", MIXERS)
def test_no_future_leaks_at_any_cut(mixer, right_ms):
    """What is changed later changes no frame that was out, in either form."""
    stream, samples = model(mixer, right_ms=right_ms), speech(6400)
    whole = offline(stream, samples)
    for cut in range(0, 6400, 320):
        changed = samples.clone()
        changed[cut:] = 0.1 * torch.randn(6400 - cut)
        # A chunk of 4 frames is out once it, its right context and 40 samples after
        # that are heard.
        frames = max(cut - 40 - 16 * right_ms, 0) // 2560 * 4
        assert torch.equal(offline(stream, changed)[:frames], whole[:frames])
        out, _ = stream.feed(stream.init_state(1), [samples[:cut]])
        assert len(out[0]) == frames
    assert not torch.equal(offline(stream, changed), whole)


def test_streams_are_stacked_split_reset_and_saved(tmp_path):
    stream = model("hypermixing")
    utterances = [speech(9000), speech(7000)]
    states = []
    for utterance, heard in zip(utterances, (3333, 5000)):
        out, state = stream.feed(stream.init_state(1), [utterance[:heard]])
        states.append((out[0], state))
    both = StreamState.stack([state for _, state in states])
    both.save(tmp_path / "state.safetensors")
    both = StreamState.load(tmp_path / "state.safetensors")
    rest = [utterances[0][3333:], utterances[1][5000:]]
    got, _ = stream.feed(both, rest, last=True)
    for (head, _), tail, utterance in zip(states, got, utterances):
        expected = offline(stream, utterance)
        assert (torch.cat([head, tail]) - expected).abs().max() <= TOLERANCE
    # The second stream begins anew, the first goes on as if nothing had happened.
    again, _ = stream.feed(stream.reset(both, [1]), [rest[0], utterances[0]], last=True)
    assert (again[0] - got[0]).abs().max() <= TOLERANCE
    assert (again[1] - offline(stream, utterances[0])).abs().max() <= TOLERANCE
    assert [s.batch_size for s in both.unstack()] == [1, 1]


def test_a_state_is_never_changed_and_keeps_its_size():
    stream = model("hypermixing")
    before = stream.init_state(2)
    copy = {name: tensor.clone() for name, tensor in before.tensors.items()}
    _, after = stream.feed(before, [speech(9000), speech(100)])
    for name, tensor in copy.items():
        assert torch.equal(before.tensors[name], tensor), name
        assert after.tensors[name].shape == tensor.shape, name
        assert after.tensors[name].dtype == tensor.dtype, name


def test_an_error_names_its_stream_and_the_others_go_on():
    stream = model("hypermixing")
    utterances = [speech(6000), speech(6000)]
    out, state = stream.feed(stream.init_state(2), [u[:3000] for u in utterances])
    bad = utterances[0][3000:].clone()
    bad[7] = torch.nan
    with pytest.raises(ValueError, match="stream 0: samples that are NaN"):
        stream.feed(state, [bad, utterances[1][3000:]], last=True)
    tail, ended = stream.feed(state.select([1]), [utterances[1][3000:]], last=True)
    got = torch.cat([out[1], tail[0]])
    assert (got - offline(stream, utterances[1])).abs().max() <= TOLERANCE
    with pytest.raises(ValueError, match="stream 0 is closed"):
        stream.feed(ended, [utterances[1]])
    for samples, message in (
        ([bad], "2 streams need as many"),
        ([bad[None], bad], r"stream 0 needs \(N,\) floating"),
        ([bad.int(), bad], "floating samples, got .* torch.int32"),
    ):
        with pytest.raises(ValueError, match=message):
            stream.feed(state, samples)


def test_a_state_of_another_model_is_refused(tmp_path):
    stream, state = model("hypermixing"), model("RoPEMHA").init_state(1)
    with pytest.raises(ValueError, match="another chunk rule"):
        stream.feed(state, [speech(10)])
    with pytest.raises(ValueError, match="of 2 models"):
        StreamState.stack([state, stream.init_state(1)])
    other = StreamingModel(stream.extractor, stream.recognizer, 80, LEFT_MS)
    with pytest.raises(ValueError, match="another chunk rule"):
        other.feed(stream.init_state(1), [speech(10)])
    file = tmp_path / "state.safetensors"
    file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="holds no state"):
        StreamState.load(file)


@pytest.mark.parametrize(
    "changes,chunk_ms,message",
    [
        ({}, 100, "multiple of 40 ms"),
        ({"normalization": "level"}, 160, "normalization: global or running_level"),
        ({"normalization": "utterance"}, 160, "normalization: global or running"),
        ({"top_db": 80.0}, 160, "top_db: null"),
        ({"frontend_causal": False}, 160, "causal=True"),
        ({"attention_type": "mixture_of_attention"}, 160, "cannot stream"),
        ({"attention_type": "RoPEMHA"}, 160, "left"),
    ],
)
def test_what_cannot_stream_says_so(changes, chunk_ms, message):
    config = streaming_config(mixer_options={}, **changes)
    with pytest.raises(ValueError, match=message):
        StreamingModel(config["extractor"], config["recognizer"], chunk_ms)


def test_speechbrains_manner_of_streaming():
    transformer = streaming_config()["recognizer"].transformer
    rule = chunk_config(160, None, 40)
    x = torch.randn(2, 10, 160)
    with torch.no_grad():
        expected = transformer.encode(x, dynchunktrain_config=rule)
        context = transformer.make_streaming_context(rule)
        pieces = [x[:, :4], x[:, 4:8], x[:, 8:]]
        got = [transformer.encode_streaming(piece, context) for piece in pieces]
    assert (torch.cat(got, dim=1) - expected).abs().max() <= TOLERANCE


class Tokenizer:
    """Each token after the blank a word of one letter, every third without a space."""

    def id_to_piece(self, index):
        return ("" if index % 3 == 0 else "\u2581") + chr(ord("A") + index)

    def decode_ids(self, ids):
        text = "".join(self.id_to_piece(index) for index in ids)
        return text.replace("\u2581", " ").strip()


def recogniser(**options):
    return StreamingASR(model("hypermixing"), Tokenizer(), **options)


# As many tokens as the tiny model has: three marks, the space and the letters.
CHARACTERS = make_tokenizer("ABCDEFGH")


def search_of(kind, tmp_path):
    if kind == "greedy":
        return None
    options = {"hotwords": ["BAD", "A B"]} if "hot words" in kind else {}
    if "n-grams" in kind:
        sentences = ["A B C", "C A", "D E A F", "G A B"]
        options["arpa"] = train_arpa(sentences, tmp_path / "lm.arpa", 2)
    if "lexicon" in kind:
        return LexiconSearcher(beam_size=4, **options)
    return CTCSearcher(beam_size=4, **options)


KINDS = ["greedy", "beam", "n-grams", "n-grams, hot words", "n-grams, lexicon"]


@pytest.mark.parametrize("kind", KINDS)
def test_partials_grow_and_cuts_do_not_matter(kind, tmp_path):
    asr = StreamingASR(
        model("hypermixing"), CHARACTERS, search_of(kind, tmp_path), endpoint_s=60.0
    )
    samples = speech(40000)
    seen = []
    for size in (40000, 777, 160):
        words, pieces = (), samples.split(size)
        for partial in asr.partials(pieces):
            assert partial.words[: len(words)] == words
            words = partial.words
        assert partial.ended and partial.rest == ""
        assert partial.text == " ".join(word.text for word in words)
        assert partial.nbest[0].text.split() == partial.text.split()
        seen.append([word.text for word in words])
        for word, after in zip(words, words[1:]):
            assert 0 <= word.start_s < word.end_s <= after.start_s <= 2.52
            assert 0 < word.confidence <= 1
    assert seen[0] and seen[1:] == seen[:1] * 2


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_a_stream_says_what_the_search_says_of_the_whole(kind, data, one_search):
    """Segment by segment, whatever pieces its frames come in."""
    endpoint_s = data.draw(st.sampled_from([0.4, 60.0]))
    asr = StreamingASR(
        model("hypermixing"), CHARACTERS, one_search(kind), endpoint_s=endpoint_s
    )
    count = data.draw(st.integers(1, 15)) * 4
    frames = 3 * torch.randn(count, 12)
    frames[:, 1:3] = -torch.inf
    frames[torch.rand(count) < 0.5, 0] += 9.0
    frames = frames.log_softmax(-1)
    cuts = data.draw(st.lists(st.integers(0, count // 4), max_size=6))
    edges = [4 * edge for edge in (0, *sorted(cuts), count // 4)]
    runs = []
    for pieces in ([frames], [frames[a:b] for a, b in zip(edges, edges[1:])]):
        stream, partials = asr.open(), []
        for piece in pieces:
            partials += stream.take(piece, stream.state, last=False)
        partials += stream.take(frames[:0], stream.state, last=True)
        runs.append([partial for partial in partials if partial.ended])
    assert runs[0] == runs[1]
    if endpoint_s == 60.0:
        (partial,) = runs[0]
        assert list(partial.nbest) == asr.search.decode(frames, CHARACTERS)
        assert partial.text.split() == partial.nbest[0].text.split()


@pytest.fixture(scope="module")
def one_search(tmp_path_factory):
    return functools.cache(lambda kind: search_of(kind, tmp_path_factory.mktemp("lm")))


def test_with_a_phone_head_a_stream_gives_frames_for_both_heads():
    samples = speech(20000)
    expected = offline(model("hypermixing"), samples)
    both = copy.deepcopy(model("hypermixing"))
    both.recognizer.phone_head = torch.nn.Linear(16, 2)
    (frames,), _ = both.feed(both.init_state(1), [samples], last=True)
    assert frames.shape == (len(expected), 16)
    assert (both.ctc_log_probs(frames) - expected).abs().max() <= TOLERANCE


def test_a_search_of_whole_utterances_is_refused():
    """The decoder attends to all frames."""
    search = object.__new__(JointSearcher)
    search.lm_tokenizer = None
    with pytest.raises(ValueError, match="JointSearcher needs the whole utterance"):
        StreamingASR(model("hypermixing"), CHARACTERS, search)


def test_silence_without_words_keeps_nothing():
    """Hypotheses that lost do not stay alive through the silence after them."""
    asr = StreamingASR(
        model("hypermixing"), CHARACTERS, CTCSearcher(beam_size=8), endpoint_s=0.4
    )
    stream, frames = asr.open(), -9.0 - torch.rand(400, 12)
    frames[:, 0] = 0.0
    frames[3, CHARACTERS.piece_to_id("B")] = -2.0
    partials = stream.take(frames, stream.state, last=False)
    assert [partial.text for partial in partials] == [""]
    assert stream.search.frames < 11 and len(stream.search.beams) == 1
    frames[2, [0, CHARACTERS.piece_to_id("B")]] = torch.tensor([-9.0, 0.0])
    ended = stream.take(frames, stream.state, last=True)[0]
    assert ended.ended and ended.text == "B"
    assert ended.words[0].start_s == pytest.approx(402 * 0.04)


@pytest.mark.parametrize("kind", KINDS)
def test_cuts_do_not_matter_to_segments(kind, tmp_path):
    """Where a segment ends the next begins anew, however much comes at once."""
    often_silent = model.__wrapped__("hypermixing")
    with torch.no_grad():
        often_silent.recognizer.ctc_head.bias[0] += 0.5
    search = search_of(kind, tmp_path)
    asr = StreamingASR(often_silent, CHARACTERS, search, endpoint_s=0.04)
    samples, expected = speech(40000), None
    for size in (160, 2560, 777, 40000):
        partials = list(asr.partials(samples.split(size)))
        ended = [partial for partial in partials if partial.ended]
        assert len(ended) > 2
        expected = expected or ended
        assert [p.text for p in ended] == [p.text for p in expected]
        times = [(p.start_s, p.heard_s) for p in ended]
        assert times == [(p.start_s, p.heard_s) for p in expected]
        assert times == sorted(times)
    stream = asr.open()
    stream.feed(samples[:5000])
    assert asr.model.missing(stream.state) == [2600 + 2560 - 5000]


def test_greedy_text_is_that_of_the_whole():
    asr, samples = recogniser(endpoint_s=60.0), speech(30000)
    ids = ctc_greedy_decode(offline(asr.model, samples)[None], torch.ones(1), 0)[0]
    (*_, last) = asr.partials([samples.numpy()])
    # 1 and 2 begin and end a sentence, and are no text.
    assert last.text == Tokenizer().decode_ids([index for index in ids if index > 2])


def test_silence_ends_a_segment_and_the_next_begins_anew():
    asr = recogniser(endpoint_s=0.4)
    stream, frames = asr.open(), torch.full((60, 12), -9.0)
    frames[:, 0] = 0.0
    for frame in (2, 3, 40, 41):
        frames[frame] = torch.full((12,), -9.0)
        frames[frame, 5] = 0.0
    _, state = asr.model.feed(stream.state, [speech(9000)])
    partials = stream.take(frames, state, last=True)
    ended = [partial for partial in partials if partial.ended]
    assert [partial.text for partial in ended] == ["F", "F", ""]
    assert [round(p.words[0].start_s, 2) for p in ended[:2]] == [0.08, 1.6]
    fresh = asr.model.init_state(1).tensors
    for name, tensor in stream.state.tensors.items():
        kept = state.tensors if not name.startswith("model.") else fresh
        assert torch.equal(tensor, kept[name]), name


def test_each_stream_may_have_hot_words_and_an_end_of_its_own():
    """Fed in one batch, of which one ends."""
    asr = StreamingASR(model("hypermixing"), CHARACTERS, endpoint_s=60.0)
    hot = CTCSearcher(beam_size=4, nbest=2, hotwords=["BAD"], hotword_weight=5.0)
    streams = [asr.open(), asr.open(math.inf, hot)]
    samples = speech(9000)
    both = asr.feed(streams, [samples, samples], last=[False, True])
    own = StreamingASR(asr.model, CHARACTERS, hot)
    for found, alone in ((both[1], own), (streams[0].close(), asr)):
        (*_, expected) = alone.partials([samples])
        texts = [reading.text for reading in expected.nbest]
        assert [reading.text for reading in found[-1].nbest] == texts
        assert found[-1].text == expected.text
    assert not both[0][-1].ended and len(both[1][-1].nbest) == 2
    with pytest.raises(ValueError, match="endpoint_s must be > 0, got 0"):
        asr.open(endpoint_s=0)


def test_several_streams_at_once_equal_each_alone():
    asr = recogniser(endpoint_s=60.0)
    utterances = [speech(12000), speech(9000)]
    streams = [asr.open() for _ in utterances]
    asr.feed(streams[:1], [utterances[0][:5000]])
    rest = [utterances[0][5000:], utterances[1]]
    together = asr.feed(streams, rest, last=True)
    for utterance, partials in zip(utterances, together):
        (*_, alone) = asr.partials([utterance])
        assert alone.text == partials[-1].text


def test_a_stream_refuses_what_it_cannot_take_and_goes_on():
    asr, samples = recogniser(endpoint_s=60.0), speech(9000)
    stream = asr.open()
    stream.feed(samples[:4000], sample_rate_hz=16000)
    with pytest.raises(ValueError, match="at 16000 Hz, got 8000 Hz"):
        stream.feed(samples[4000:], sample_rate_hz=8000)
    with pytest.raises(ValueError, match="NaN or infinite"):
        stream.feed([float("inf")])
    stream.feed(samples[4000:])
    (*_, alone) = asr.partials([samples])
    assert stream.close()[-1].text == alone.text
    with pytest.raises(ValueError, match="closed"):
        stream.feed(samples)
    with pytest.raises(ValueError, match="endpoint_s must be finite and > 0, got 0"):
        recogniser(endpoint_s=0)


def test_every_type_of_samples_streams_alike():
    asr, samples = recogniser(endpoint_s=60.0), (32767 * speech(12000)).short()
    (*_, expected) = asr.partials([samples.float() / 32768])
    pcm = samples.numpy()
    for typed in (
        pcm,
        pcm.astype(">i2"),
        samples.int() * 65536,
        samples.double() / 2**15,
    ):
        (*_, last) = asr.partials([typed])
        assert last == expected
    stream = asr.open()
    for refused in (pcm.tolist(), pcm.view(np.uint16), samples > 0):
        with pytest.raises(ValueError, match="samples must be real numbers"):
            stream.feed(refused)
    with pytest.warns(AudioWarning, match="16-bit values"):
        stream.feed(pcm.astype(np.int32))
    with pytest.warns(AudioWarning, match="divide them by 32768"):
        stream.feed(samples.float())
    with pytest.warns(AudioWarning, match="divide them by 32768"):
        asr.model.feed(asr.model.init_state(1), [samples.half()])


def test_pcm_is_read_as_it_comes():
    samples = (32767 * speech(1000)).to(torch.int16).numpy()
    pieces = list(read_pcm(io.BytesIO(samples.tobytes()), 16000))
    assert (np.concatenate(pieces) == samples).all() and len(pieces) == 4
    with pytest.raises(ValueError, match="within a 16-bit sample"):
        list(read_pcm(io.BytesIO(b"abc"), 16000))


def test_what_was_said_before_an_error_comes_out_first():
    asr, samples = recogniser(endpoint_s=60.0), speech(9000)

    def unplugged():
        yield from samples.split(777)
        raise OSError("no such microphone")

    partials = []
    with pytest.raises(OSError, match="no such microphone"):
        partials.extend(asr.partials(unplugged()))
    seen = []
    with pytest.raises(OSError):
        for partial in asr.partials(unplugged()):
            seen.append(partial)
    assert seen[-1].ended
    assert seen[-1].text == list(asr.partials([samples]))[-1].text


@pytest.mark.parametrize("kind", ["greedy", "beam"])
def test_words_without_a_letter_are_no_words(kind, tmp_path):
    """A model says twice that a word begins, and once, at the end, nothing after it."""
    asr = StreamingASR(
        model("hypermixing"), CHARACTERS, search_of(kind, tmp_path), endpoint_s=60.0
    )
    stream = asr.open()
    space, a = CHARACTERS.encode("A")
    said = torch.tensor([space, 0, space, a, 0, space, 0])
    log_probs = torch.full((len(said), 12), -20.0)
    log_probs[torch.arange(len(said)), said] = 0.0
    partials = []
    for frame in log_probs:
        partials += stream.take(frame[None], stream.state, last=False)
    partials += stream.take(log_probs[:0], stream.state, last=True)
    words = ()
    for partial in partials:
        assert all(word.text.strip() for word in partial.words)
        assert partial.words[: len(words)] == words
        words = partial.words
    assert [word.text for word in words] == ["A"] and partials[-1].text == "A"
