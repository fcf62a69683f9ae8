"""The models in pretrained/, on the speech that their cards speak of."""

import pytest
import torch
from safetensors.torch import load_file
from speechbrain.utils.metric_stats import ErrorRateStats

from hyperconformer.audio import read_audio
from hyperconformer.corpora.an4 import list_utterances
from hyperconformer.hub.folder import find_model, list_shipped_models, read_settings
from hyperconformer.hub.hyperparams import to_hyperpyyaml
from hyperconformer.transcribe.offline import ASR
from hyperconformer.transcribe.streaming import StreamingASR


@pytest.fixture(scope="module")
def word_errors(shared_folder):
    """Counts the wrong words of AN4's test set, heard by a function of a file."""
    utterances = list_utterances(shared_folder / "an4", "test")

    def count(words_of):
        errors = ErrorRateStats()
        for utterance in utterances:
            heard = words_of(utterance.audio)
            errors.append([utterance.id], [heard], [utterance.text.split()])
        summary = errors.summarize()
        assert (len(utterances), summary["num_scored_tokens"]) == (130, 773)
        return summary["num_edits"]

    return count


# The limits are what was measured and a few more: other processors round otherwise.


def test_the_default_model_on_an4(word_errors):
    asr = ASR.from_hparams()
    assert word_errors(lambda file: asr.transcribe_file(file).text.split()) <= 22 + 2


def test_the_model_with_synthetic_voices_on_an4(word_errors):
    asr = ASR.from_hparams("hyperconformer-an4-synthetic")
    assert word_errors(lambda file: asr.transcribe_file(file).text.split()) <= 28 + 3


def test_the_streaming_model_on_an4(word_errors):
    asr = StreamingASR.from_hparams(chunk_ms=640)

    def words_of(file):
        partials = asr.partials([read_audio(file)])
        return [w.text for partial in partials if partial.ended for w in partial.words]

    assert word_errors(words_of) <= 44 + 4


def test_the_streaming_model_on_whole_utterances(word_errors):
    asr = ASR.from_hparams("hyperconformer-an4-streaming")
    assert word_errors(lambda file: asr.transcribe_file(file).text.split()) <= 33 + 3


@pytest.mark.parametrize("name", list_shipped_models())
def test_the_files_of_a_shipped_folder_say_the_same(name):
    folder = find_model(name)
    settings, text = read_settings(name), (folder / "hyperparams.yaml").read_text()
    assert to_hyperpyyaml(settings, has_decoder=False) == text
    state = load_file(folder / "model.safetensors")
    asr = ASR.from_hparams(name)
    for part in ("extractor", "recognizer"):
        for key, value in getattr(asr, part).state_dict().items():
            assert torch.equal(value, state.pop(f"{part}.{key}"))
    assert not state
