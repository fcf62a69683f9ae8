"""What a run keeps, and what must not change when it is resumed."""

import pathlib

import pytest
from ruamel.yaml import YAML

from hyperconformer.config import read_config, resolve_config
from hyperconformer.training.experiment import prepare_tokenizer
from hyperconformer.training.resume import require_same_model
from hyperconformer.training.settings import ASRSettings

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def tokens(tmp_path):
    """The tokenizer of a run in ``tmp_path`` on given sentences."""

    def prepare(*sentences, earlier=None, folder="run", **settings):
        manifest = tmp_path / "train.csv"
        rows = [f"{i},1.0,a.wav,s,{text}\n" for i, text in enumerate(sentences)]
        manifest.write_text("ID,duration,wav,spk_id,wrd\n" + "".join(rows))
        folders = {"output_folder": folder, "corpus": "csv", "data_folder": "."}
        run = ASRSettings(**folders, number_of_epochs=1, **settings)
        manifests = {"train": manifest}
        return prepare_tokenizer(run, manifests, tmp_path / folder, earlier)

    return prepare


def pieces(tokenizer):
    return "".join(sorted(map(tokenizer.id_to_piece, range(3, len(tokenizer)))))


def test_a_tokenizer_of_as_many_other_letters_is_not_reused(tokens):
    _, first = tokens("CAB")
    tokenizer, file = tokens("DAB")
    assert file == first and pieces(tokenizer) == "ABD\u2581"
    # One letter more: the run has one tokenizer, whatever it is called.
    _, file = tokens("DABE")
    assert list(file.parent.iterdir()) == [file]


def test_a_resumed_run_keeps_its_tokenizer_and_names_what_it_lacks(tokens):
    tokenizer, file = tokens("CAB")
    earlier = {"vocab_size": tokenizer.vocab_size(), "tokenizer_file": None}
    for text in ("DAB", "CABD"):
        with pytest.raises(ValueError, match="lacks .* hold: 'D'.*--output_folder"):
            tokens(text, earlier=earlier)
    again, found = tokens("AB", earlier=earlier)
    assert found == file and pieces(again) == pieces(tokenizer)
    file.unlink()
    with pytest.raises(ValueError, match="does not hold the tokenizer of 7 tokens"):
        tokens("CAB", earlier=earlier)


def test_tokens_of_another_run_are_compared_by_what_they_mean(tokens, tmp_path):
    tokenizer, file = tokens("CAB")
    _, other = tokens("BAD", folder="other")
    earlier = {"vocab_size": tokenizer.vocab_size(), "tokenizer_file": None}
    tokens("AB", earlier=earlier, tokenizer_file=file)
    with pytest.raises(ValueError, match="7 instead of 7, token . is 'D' instead of"):
        tokens("AB", earlier=earlier, tokenizer_file=other)
    # Kept in the run's folder, so that the run goes on without the other one.
    _, kept = tokens("AB", tokenizer_file=other, folder="borrowed")
    assert kept.read_bytes() == other.read_bytes()
    assert kept.parent == tmp_path / "borrowed/tokenizer"


def test_other_tokens_than_those_of_init_from_need_a_new_head(tokens, tiny_model):
    _, other = tokens("FED")
    with pytest.raises(ValueError, match="7 instead of 9.*add --new_head=true"):
        tokens("FED", init_from=tiny_model, tokenizer_file=other, folder="tuned")
    tokenizer, _ = tokens("BAD", init_from=tiny_model, folder="tuned")
    assert tokenizer.vocab_size() == 9  # the model's own
    tokenizer, _ = tokens("FED", init_from=tiny_model, new_head=True, folder="tuned")
    assert pieces(tokenizer) == "DEF\u2581"


def settings(overrides="", yaml="recipes/AN4/hparams/hyperconformer.yaml"):
    text = read_config(ROOT / yaml, overrides)
    return YAML().load(resolve_config(text, {"data_folder": "an4"}))


@pytest.mark.parametrize(
    "overrides, named",
    [
        (
            "attention_type: RoPEMHA",
            r"attention_type \(hypermixing there, RoPEMHA",
        ),
        ("mixer_options.tied: true", r"mixer_options.tied \(absent there, True here"),
        ("frontend_width: 320", r"frontend_width \(640 there, 320 here"),
        ("num_decoder_layers: 1", r"num_decoder_layers \(0 there, 1 here"),
        ("normalization: utterance", r"normalization \(level there, utterance here"),
        ("sample_rate: 8000", r"sample_rate \(16000 there, 8000 here"),
        ("phone_ctc: null", "phone_ctc"),
        ("phone_ctc.layer: 2", r"phone_ctc.layer \(3 there, 2 here"),
        ("token_unit: bpe", r"token_unit \(char there, bpe here"),
        ("init_from: hyperconformer-an4", "init_from .null there, hyperconformer-an4"),
        ("optimizer: !name:torch.optim.SGD {lr: 1.0}", "optimizer .*AdamW there"),
        ("number_of_epochs: 8\nnhead: 4", r"settings: nhead \(8 there, 4 here\)\."),
    ],
)
def test_what_the_weights_were_not_trained_with_is_named(tmp_path, overrides, named):
    with pytest.raises(ValueError, match=f"{tmp_path} belong .*{named}"):
        require_same_model(settings(), settings(overrides), tmp_path, test_only=False)


@pytest.mark.parametrize(
    "overrides",
    [
        "number_of_epochs: 300\nlr: 1\nweight_decay: 0.1\nmax_updates: 7",
        "max_batch_utterances: 1\ngrad_accumulation_factor: 2\ntrain_fraction: 0.5",
        "dropout: 0.3\nfrontend_dropout: 0.2\nwav_augment: null\nspeed_percent: [90]",
        "test_search: null\ntest_chunks_ms: [640]\navg_checkpoints: 3\nseed: 5",
        "data_folder: elsewhere\ncorpus: shards\nphone_ctc.weight: 0.2",
        "mixer_options.backend: torch\nprecision: bf16\nconsistency_weight: 0.2",
    ],
)
def test_what_a_resumed_run_may_change(tmp_path, overrides):
    require_same_model(settings(), settings(overrides), tmp_path, test_only=False)


def test_testing_needs_nothing_that_only_training_does(tmp_path):
    there, here = settings(), settings("phone_ctc: null\ninit_from: x")
    require_same_model(there, here, tmp_path, test_only=True)
    del there["new_head"]  # written by an earlier version
    require_same_model(there, here, tmp_path, test_only=True)
