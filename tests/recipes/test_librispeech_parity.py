"""The LibriSpeech recipes beside the models of SpeechBrain's own recipes.

SpeechBrain's settings, from its recipes/LibriSpeech/ASR/transformer/hparams, stand here
a second time and are built of SpeechBrain's modules.
"""

import io
import pathlib
from types import SimpleNamespace

import pytest
import sentencepiece
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain import Stage
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.lobes.features import Fbank
from speechbrain.lobes.models.convolution import ConvolutionFrontEnd
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM
from speechbrain.nnet.linear import Linear
from speechbrain.nnet.losses import ctc_loss, kldiv_loss
from speechbrain.nnet.schedulers import NoamScheduler
from speechbrain.processing.features import InputNormalization

from hyperconformer.cli import main
from hyperconformer.config import read_config
from hyperconformer.convert import import_speechbrain, recognizer_from_speechbrain
from hyperconformer.model_folder import load_model
from hyperconformer.training.brain import ASRBrain, TrainingBrain

HPARAMS = pathlib.Path(__file__).resolve().parents[2] / "recipes/LibriSpeech/hparams"
SIZES = {"8M": (144, 576), "22M": (256, 1024)}


def speechbrain_modules(size, vocab_size=5000):
    """The four modules, numbered as SpeechBrain's checkpoints number them."""
    d_model, d_ffn = SIZES[size]
    frontend = ConvolutionFrontEnd(
        input_shape=(8, 10, 80),
        num_blocks=2,
        num_layers_per_block=1,
        out_channels=(64, 32),
        kernel_sizes=(3, 3),
        strides=(2, 2),
        residuals=(False, False),
    )
    transformer = TransformerASR(
        input_size=640,
        tgt_vocab=vocab_size,
        d_model=d_model,
        nhead=8,
        num_encoder_layers=10,
        num_decoder_layers=4,
        d_ffn=d_ffn,
        dropout=0.1,
        activation=torch.nn.GELU,
        encoder_module="conformer",
        attention_type="hypermixing",
        normalize_before=True,
        causal=False,
    )
    heads = [Linear(input_size=d_model, n_neurons=vocab_size) for _ in range(2)]
    return torch.nn.ModuleList([frontend, transformer, *heads]).eval()


@pytest.fixture
def recipe(tmp_path):
    """What a recipe's YAML file builds, by its name."""

    def build(name, **overrides):
        folders = {"data_folder": "", "output_folder": str(tmp_path)}
        text = read_config(HPARAMS / f"{name}.yaml", {**folders, **overrides})
        return load_hyperpyyaml(text)

    return build


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("size,millions", [("8M", 7.9), ("22M", 21.7)])
def test_parameter_counts_and_names(recipe, size, millions):
    theirs = speechbrain_modules(size)
    ours = recipe(f"hyperconformer_{size}")["recognizer"]
    assert count(ours) == count(theirs)
    assert count(ours) / 1e6 == pytest.approx(millions, abs=0.05)
    ours.load_state_dict(recognizer_from_speechbrain(theirs.state_dict()), strict=True)
    dropouts = [
        {type(m).__name__: m.p for m in model.modules() if isinstance(m, dropout)}
        for model in (theirs, ours)
        for dropout in (torch.nn.Dropout, torch.nn.Dropout2d)
    ]
    assert set(dropouts[0].values()) | set(dropouts[1].values()) == {0.1}


def test_the_attention_baseline_has_as_many_parameters(recipe):
    hyper = recipe("hyperconformer_8M")["recognizer"]
    attention = recipe("conformer_baseline")["recognizer"]
    assert abs(count(attention) / count(hyper) - 1) <= 0.01


@pytest.fixture(scope="module")
def tokenizer_model():
    """A SentencePiece model of 32 tokens."""
    model = io.BytesIO()
    words = ["FIVE LITTLE WIZARDS QUICKLY BOXED AND JUMPED OVER MY HAVEN GRAZING"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words),
        model_writer=model,
        vocab_size=32,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        minloglevel=2,
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tokenizer_model):
    """A SpeechBrain checkpoint: its folder, its modules, its normaliser."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("speechbrain")
    modules = speechbrain_modules("8M", vocab_size=32)
    normalizer = InputNormalization(norm_type="global").train()
    normalizer(Fbank(n_fft=400, n_mels=80)(torch.randn(4, 16000)), torch.ones(4))
    normalizer.eval()
    torch.save(modules.state_dict(), folder / "model.ckpt")
    normalizer._save(folder / "normalizer.ckpt")
    (folder / "tokenizer.ckpt").write_bytes(tokenizer_model)
    return folder, modules, normalizer


@pytest.fixture(scope="module")
def converted(checkpoint, tmp_path_factory):
    """The same checkpoint as a model folder, made on the command line."""
    folder = tmp_path_factory.mktemp("ours") / "model"
    yaml = HPARAMS / "hyperconformer_8M.yaml"
    assert (
        main(["convert", str(checkpoint[0]), str(folder), "--recipe", str(yaml)]) == 0
    )
    return folder


@pytest.fixture(scope="module")
def batch(tokenizer_model):
    """Three utterances of one length: SpeechBrain's padding changes real frames."""
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=tokenizer_model)
    examples = []
    for name in ("FIVE WIZARDS", "MY HAVEN", "JUMPED"):
        ids = tokenizer.encode(name)
        examples.append(
            {
                "id": name,
                "sig": torch.randn(24000),
                "tokens": torch.tensor(ids),
                "tokens_bos": torch.tensor([1, *ids]),
                "tokens_eos": torch.tensor([*ids, 2]),
            }
        )
    return PaddedBatch(examples)


@torch.no_grad()
def speechbrain_outputs(modules, normalizer, batch):
    """Log-probabilities of CTC head and decoder, from samples."""
    frontend, transformer, decoder_head, ctc_head = modules
    features = Fbank(sample_rate=16000, n_fft=400, n_mels=80)(batch.sig.data)
    features = normalizer(features, batch.sig.lengths)
    encoded, decoded = transformer(
        frontend(features), batch.tokens_bos.data, batch.sig.lengths, pad_idx=0
    )
    return [
        head(x).log_softmax(-1)
        for head, x in ((ctc_head, encoded), (decoder_head, decoded))
    ]


@torch.no_grad()
def our_outputs(folder, batch):
    config, _ = load_model(folder, ("extractor", "recognizer"))
    features, lengths = config["extractor"](batch.sig.data, batch.sig.lengths)
    return config["recognizer"](features, lengths, batch.tokens_bos.data)


def test_a_converted_checkpoint_gives_the_same_output(checkpoint, converted, batch):
    ctc, seq = speechbrain_outputs(*checkpoint[1:], batch)
    got = our_outputs(converted, batch)
    # Float rounding through fourteen layers of log-probabilities of size 10.
    assert (got.ctc - ctc).abs().max() <= 1e-4
    assert (got.seq - seq).abs().max() <= 1e-4


def test_and_back_it_is_the_same_checkpoint(checkpoint, converted, tmp_path):
    assert main(["convert", str(converted), str(tmp_path), "--to-speechbrain"]) == 0
    for name in ("model.ckpt", "normalizer.ckpt"):
        old, new = (torch.load(f / name) for f in (checkpoint[0], tmp_path))
        assert set(old) == set(new)
        for key in set(old) - {"count"}:
            assert torch.equal(old[key], new[key]), key
    tokenizer = (tmp_path / "tokenizer.ckpt").read_bytes()
    assert tokenizer == (checkpoint[0] / "tokenizer.ckpt").read_bytes()


def test_equal_loss_on_the_same_batch(recipe, checkpoint, converted, batch):
    ctc, seq = speechbrain_outputs(*checkpoint[1:], batch)
    tokens, token_lens = batch.tokens
    tokens_eos, eos_lens = batch.tokens_eos
    ctc_part = ctc_loss(
        ctc, tokens, batch.sig.lengths, token_lens, 0, reduction="batchmean"
    )
    seq_part = kldiv_loss(
        seq, tokens_eos, eos_lens, label_smoothing=0.0, reduction="batchmean"
    )
    expected = 0.3 * ctc_part + 0.7 * seq_part
    config = recipe("hyperconformer_8M", vocab_size=32)
    brain = SimpleNamespace(hparams=SimpleNamespace(**config))
    predictions = our_outputs(converted, batch)
    got = ASRBrain.compute_objectives(brain, predictions, batch, Stage.TRAIN)
    assert expected > 1 and abs(got / expected - 1) <= 1e-5


def test_equal_learning_rates(recipe):
    config = recipe("hyperconformer_8M")
    ours, theirs = (
        torch.optim.Adam([torch.zeros(1)], 0.001, betas=(0.9, 0.98), eps=1e-9)
        for _ in range(2)
    )
    # The same update in one pass over the weights.
    expected = {**theirs.defaults, "fused": True}
    assert config["optimizer"]([torch.zeros(1)]).defaults == expected
    schedule = NoamScheduler(lr_initial=0.001, n_warmup_steps=25000)
    brain = SimpleNamespace(hparams=SimpleNamespace(**config), optimizer=ours)
    # The first updates, and those around the peak.
    for update in [*range(1, 1001), *range(24001, 27001)]:
        schedule.n_steps = config["lr_schedule"].n_steps = update - 1
        schedule(theirs)
        TrainingBrain._set_rate(brain, epochs_done=0)
        rate = ours.param_groups[0]["lr"]
        assert rate == theirs.param_groups[0]["lr"]
        if update % 100 == 0:
            noam = 0.001 * 25000**0.5 * min(update**-0.5, update * 25000**-1.5)
            assert rate == pytest.approx(noam, rel=1e-12)


def test_a_language_model_converts(checkpoint, tmp_path):
    theirs = TransformerLM(
        vocab=32,
        d_model=24,
        nhead=12,
        num_encoder_layers=2,
        num_decoder_layers=0,
        d_ffn=3072,
        dropout=0.0,
        activation=torch.nn.GELU,
        normalize_before=False,
    ).eval()
    torch.save(theirs.state_dict(), tmp_path / "lm.ckpt")
    tokenizer = (checkpoint[0] / "tokenizer.ckpt").read_bytes()
    (tmp_path / "tokenizer.ckpt").write_bytes(tokenizer)
    # Its kind, narrower: 93 million parameters take a minute to draw.
    yaml, folder = HPARAMS / "lm_transformer.yaml", tmp_path / "lm"
    import_speechbrain(tmp_path, folder, yaml, {"d_model": 24, "depth": 2})
    lm = load_model(folder, ["language_model"])[0]["language_model"]
    tokens = torch.tensor([[1, 5, 9, 7], [1, 4, 0, 0]])
    with torch.no_grad():
        assert torch.equal(lm(tokens), theirs(tokens))
    assert lm.num_tokens == 32


def test_what_does_not_fit_is_named(checkpoint, tmp_path, capsys):
    source, yaml = str(checkpoint[0]), str(HPARAMS / "hyperconformer_22M.yaml")
    assert main(["convert", source, str(tmp_path / "a"), "--recipe", yaml]) == 1
    assert "not those of the model" in capsys.readouterr().err
    assert main(["convert", str(tmp_path), str(tmp_path / "a"), "--recipe", yaml]) == 1
    assert "holds no tokenizer.ckpt" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no weight of a hyperconformer.*'4.weight'"):
        recognizer_from_speechbrain({"4.weight": torch.zeros(1)})
