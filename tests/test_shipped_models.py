"""The models in pretrained/, on the speech that their cards speak of."""

from speechbrain.utils.metric_stats import ErrorRateStats

from hyperconformer.corpora.an4 import list_utterances
from hyperconformer.inference import ASR


def test_the_default_model_on_an4(shared_folder):
    asr, errors = ASR.from_hparams(), ErrorRateStats()
    utterances = list_utterances(shared_folder / "an4", "test")
    for utterance in utterances:
        heard = asr.transcribe_file(utterance.audio).text
        errors.append([utterance.id], [heard.split()], [utterance.text.split()])
    summary = errors.summarize()
    assert (len(utterances), summary["num_scored_tokens"]) == (130, 773)
    # 22, where it was measured; other processors round otherwise.
    assert summary["num_edits"] <= 24
