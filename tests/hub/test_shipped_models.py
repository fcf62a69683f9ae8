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

# Wrong words as measured, of the whole test set.
WRONG = {
    "hyperconformer-an4": 22,
    "hyperconformer-an4-synthetic": 28,
    "hyperconformer-an4-streaming": 33,
    "hyperconformer-an4-streaming, 640 ms": 44,
    "hyperconformer-an4-streaming, 560 + 80 ms": 39,
}


def count_wrong_words(model, folder, utterances, words):
    """Of AN4's test utterances in a folder."""
    name, _, chunk = model.partition(", ")
    if chunk:
        lengths = map(float, chunk.removesuffix(" ms").split(" + "))
        lengths = dict(zip(("chunk_ms", "right_context_ms"), lengths))
        asr = StreamingASR.from_hparams(name, **lengths)
    else:
        asr = ASR.from_hparams(name)
    errors = ErrorRateStats()
    for utterance in list_utterances(folder, "test"):
        if chunk:
            partials = asr.partials([read_audio(utterance.audio)])
            ended = [partial.words for partial in partials if partial.ended]
            heard = [word.text for segment in ended for word in segment]
        else:
            heard = asr.transcribe_file(utterance.audio).text.split()
        errors.append([utterance.id], [heard], [utterance.text.split()])
    summary = errors.summarize()
    assert (len(errors.scores), summary["num_scored_tokens"]) == (utterances, words)
    return summary["num_edits"]


# Tests of hyperconformer.verification count those of twenty utterances.


@pytest.mark.slow
@pytest.mark.parametrize("model", WRONG)
def test_wrong_words_of_the_whole_test_set(model, whole_an4):
    wrong = count_wrong_words(model, whole_an4, 130, 773)
    # A few more are allowed: other processors round otherwise.
    assert abs(wrong - WRONG[model]) <= 4


@pytest.mark.integration
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
