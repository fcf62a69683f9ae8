"""``POST /v1/audio/transcriptions``, asked by OpenAI's own package."""

import copy
import io

import httpx
import numpy as np
import openai
import pytest
import soundfile

from hyperconformer.lm.ngram import train_arpa
from hyperconformer.search.lexicon import LexiconSearcher
from hyperconformer.serve.limits import Limits
from hyperconformer.transcribe.formats import to_srt, to_vtt


def wav(seconds=3.0, seed=0, rate_hz=16000, **options):
    """A recording as a file of OpenAI's package: name and bytes."""
    noise = np.random.default_rng(seed).normal(size=int(seconds * rate_hz))
    loud = 0.1 * noise * (1 + np.sin(np.arange(len(noise)) / 4000))
    file = io.BytesIO()
    soundfile.write(file, loud, rate_hz, **{"format": "WAV", **options})
    return "noise.wav", file.getvalue()


@pytest.fixture
def client(serve):
    server = serve()
    yield openai.OpenAI(api_key="none", base_url=f"{server.http}/v1", max_retries=0)


def create(client, file, **options):
    return client.audio.transcriptions.create(model="tiny", file=file, **options)


def test_every_format_says_what_the_recogniser_says(client, tiny_asr, tmp_path):
    path = tmp_path / "noise.wav"
    for seed in range(20):  # Until there are several words.
        file = wav(seed=seed)
        path.write_bytes(file[1])
        expected = tiny_asr.transcribe_file(path)
        if len(expected.words) > 1:
            break
    assert len(expected.words) > 1 and file[0] == path.name
    found = create(client, file)
    assert found.text == expected.text
    assert found.usage.seconds == 3.0
    assert create(client, file, response_format="text") == expected.text + "\n"
    assert create(client, file, response_format="srt") == to_srt(path, expected)
    assert create(client, file, response_format="vtt") == to_vtt(path, expected)
    details = create(
        client,
        file,
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
        language="en",
    )
    assert (details.text, details.language, details.duration) == (
        expected.text,
        "en",
        3.0,
    )
    assert [(w.word, w.start, w.end) for w in details.words] == [
        (w.text, round(w.start_s, 3), round(w.end_s, 3)) for w in expected.words
    ]
    assert " ".join(segment.text for segment in details.segments) == expected.text
    first, last = details.segments[0], details.segments[-1]
    assert (first.start, last.end) == (details.words[0].start, details.words[-1].end)
    assert all(segment.avg_logprob < 0 for segment in details.segments)


def test_the_text_is_streamed_as_it_is_found(client):
    file = wav(50.0)  # several chunks
    whole = create(client, file).text
    events = list(create(client, file, stream=True))
    *deltas, done = events
    assert len(deltas) > 1
    assert {delta.type for delta in deltas} == {"transcript.text.delta"}
    assert "".join(delta.delta for delta in deltas) == whole == done.text
    assert (done.type, done.usage.seconds) == ("transcript.text.done", 50.0)


def test_hot_words_come_as_prompt_or_keywords(client):
    file = wav()
    plain = create(client, file).text
    words = {"prompt": "dad dad, CAB BE", "keywords": ["be"]}
    for given in (words, {"prompt": words["prompt"]}):
        assert create(client, file, **given).text != plain
    with pytest.raises(openai.BadRequestError, match="the hot word 'ZOO'") as caught:
        create(client, file, keywords=["dad", "ZOO"])
    assert caught.value.code == "invalid_hot_word"


def test_hot_words_keep_the_search_of_a_lexicon(serve, tiny_asr, tmp_path):
    pytest.importorskip("flashlight.lib.text")
    asr = copy.copy(tiny_asr)
    search = LexiconSearcher(train_arpa(["BAD CAB"], tmp_path / "lm.arpa"))
    asr.use_search(search)
    client = openai.OpenAI(
        api_key="none", base_url=f"{serve(asr=asr).http}/v1", max_retries=0
    )
    plain, hot = create(client, wav()).text, create(client, wav(), prompt="dad").text
    assert set(plain.split()) <= {"BAD", "CAB"}
    assert "DAD" in hot and set(hot.split()) <= {"BAD", "CAB", "DAD"}
    assert create(client, wav()).text == plain


@pytest.mark.parametrize("format", ["FLAC", "OGG", "MP3"])
def test_other_containers_and_rates(client, format):
    assert create(client, wav(rate_hz=24000, format=format)).text


@pytest.mark.parametrize(
    "options,message",
    [
        ({"temperature": 0.7}, "temperature: Input should be less than or equal to 0"),
        ({"response_format": "diarized_json"}, "response_format: Input should be"),
        ({"include": ["logprobs"]}, "unsupported: include"),
        ({"timestamp_granularities": ["word"]}, "need response_format verbose_json"),
        ({"stream": True, "response_format": "srt"}, "stream needs response_format"),
        ({"file": ("a.wav", b"garbage")}, "a.wav cannot be read as audio"),
        ({"file": ("a.wav", b"")}, "a.wav is empty: it has no bytes"),
        ({"file": wav(0.01)}, "the audio lasts 0.0100 s; at least 0.1 s"),
        ({"file": ("a.wav", wav()[1][:2000])}, "a.wav: truncated audio"),
    ],
)
def test_mistakes_are_messages(client, options, message):
    with pytest.raises(openai.BadRequestError, match=message):
        create(client, **{"file": wav(), **options})


def test_a_missing_file_and_another_model_are_refused(client):
    with pytest.raises(openai.NotFoundError, match="no model 'whisper-1' here"):
        client.audio.transcriptions.create(model="whisper-1", file=wav())
    answer = httpx.post(f"{client.base_url}audio/transcriptions", data={"model": "x"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "file"
    names = [model.id for model in client.models.list()]
    assert names == ["tiny", "tiny-live"]


def test_garbage_is_said_in_a_stream_too(client):
    with pytest.raises(openai.APIError, match="cannot be read as audio"):
        list(create(client, ("a.wav", b"garbage"), stream=True))


def test_uploads_are_limited(serve):
    server = serve(limits=Limits(upload_mb=0.1, audio_s=2.0))
    client = openai.OpenAI(api_key="none", base_url=f"{server.http}/v1", max_retries=0)
    with pytest.raises(openai.APIStatusError) as caught:
        create(client, wav(4.0))
    assert caught.value.status_code == 413
    with pytest.raises(openai.APIStatusError, match="lasts more than 2 s") as caught:
        create(client, wav(3.0))
    assert caught.value.status_code == 413
    assert create(client, wav(1.9)).text


def test_more_files_than_places_are_refused(serve, tiny_asr, monkeypatch):
    server = serve(limits=Limits(files=1))
    client = openai.OpenAI(api_key="none", base_url=f"{server.http}/v1", max_retries=0)
    server.service.files.take()
    with pytest.raises(openai.InternalServerError, match="it takes 1 files at once"):
        create(client, wav())
    server.service.files.give_back()
    for _ in range(2):  # each gives its place back
        assert create(client, wav()).text
        with pytest.raises(openai.BadRequestError):
            create(client, ("a.wav", b"garbage"))
    assert server.service.files.taken == 0


def test_form_fields_that_are_wrong_are_named(serve):
    """As other clients than OpenAI's send them."""
    url, name, data = f"{serve().http}/v1/audio/transcriptions", *wav()
    two = [("file", (name, data)), ("file", ("b.wav", data))]
    for fields, files, message in (
        (
            {"keywords": "dad"},
            two[:1],
            "unsupported: keywords; did you mean keywords[]?",
        ),
        ({}, two, "expected one file, got several"),
    ):
        answer = httpx.post(url, data={"model": "tiny", **fields}, files=files)
        assert answer.status_code == 400
        assert message in answer.json()["error"]["message"]
