"""Folders as SpeechBrain's recipes leave them, to model folders and back, strictly."""

import pathlib
import shutil

import pytest
import torch
from speechbrain.lobes.features import Fbank
from speechbrain.lobes.models.convolution import ConvolutionFrontEnd
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM
from speechbrain.nnet.linear import Linear
from speechbrain.nnet.schedulers import NoamScheduler
from speechbrain.processing.features import InputNormalization
from speechbrain.utils.checkpoints import Checkpointer, average_checkpoints
from speechbrain.utils.epoch_loop import EpochCounter

from hyperconformer import HyperConformerASR
from hyperconformer.cli.main import main
from hyperconformer.hub.convert import (
    add_position_tables,
    export_speechbrain,
    find_checkpoints,
    import_speechbrain,
)
from hyperconformer.hub.folder import load_model
from hyperconformer.training.data import train_tokenizer

RECIPES = pathlib.Path(__file__).resolve().parents[2] / "recipes/LibriSpeech/hparams"
YAML = RECIPES / "hyperconformer_8M.yaml"
SMALL = {"d_model": 16, "d_ffn": 32, "nhead": 2, "num_encoder_layers": 2}
SMALL["num_decoder_layers"] = 1
TOKENS = 7


def modules(attention_type="hypermixing"):
    """The modules of SpeechBrain's recipe, small: the list and the normaliser."""
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
        tgt_vocab=TOKENS,
        dropout=0.1,
        activation=torch.nn.GELU,
        encoder_module="conformer",
        attention_type=attention_type,
        normalize_before=True,
        causal=False,
        **SMALL,
    )
    heads = [Linear(input_size=16, n_neurons=TOKENS) for _ in range(2)]
    model = torch.nn.ModuleList([frontend, transformer, *heads])
    return model, InputNormalization(norm_type="global", update_until_epoch=4)


@pytest.fixture(scope="module")
def spm_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "train.csv").write_text("ID,duration,wav,spk_id,wrd\n1,1.0,a.wav,s,ABC\n")
    return train_tokenizer(folder / "train.csv", folder, "char", 0)


@pytest.fixture
def recipe_output(tmp_path, spm_file):
    """What SpeechBrain's recipe leaves: two epochs' ends, and a checkpoint between."""
    torch.manual_seed(0)
    output = tmp_path / "speechbrain"
    model, normalizer = modules()
    checkpointer = Checkpointer(
        output / "save",
        recoverables={
            "model": model,
            "noam_scheduler": NoamScheduler(lr_initial=0.001, n_warmup_steps=25000),
            "normalizer": normalizer,
            "counter": EpochCounter(2),
        },
    )
    normalizer.train()
    for epoch in (1, 2):
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        normalizer(Fbank(n_fft=400, n_mels=80)(torch.randn(2, 8000)), torch.ones(2))
        if epoch == 2:
            checkpointer.save_checkpoint(
                {"brain_intra_epoch_ckpt": True}, end_of_epoch=False
            )
        checkpointer.save_and_keep_only(
            {"ACC": 0.1 * epoch, "epoch": epoch}, max_keys=["ACC"], num_to_keep=10
        )
    shutil.copy(spm_file, output / "save/tokenizer.ckpt")
    return output, checkpointer, normalizer


def expect(folder, state, normalizer):
    """That a model folder holds the weights of SpeechBrain's modules."""
    config, tokenizer = load_model(folder, ("extractor", "recognizer"))
    assert tokenizer.vocab_size() == TOKENS
    assert torch.equal(config["extractor"].mean, normalizer.glob_mean)
    assert torch.equal(config["extractor"].std, normalizer.glob_std)
    ours = config["recognizer"]
    for head, number in (("decoder_head", 2), ("ctc_head", 3)):
        weight = getattr(ours, head).weight
        assert torch.allclose(weight, state[f"{number}.w.weight"], atol=1e-7)
    back, _ = modules()
    back.load_state_dict(state, strict=True)
    x, lengths, tokens = torch.randn(1, 40, 80), torch.tensor([40]), torch.tensor([[1]])
    with torch.no_grad():
        got = ours(x, lengths, tokens)
        frames, ones = back.eval()[0](x), torch.ones(1)
        encoded, decoded = back[1](frames, tokens, ones, pad_idx=0)
    assert (got.ctc - back[3](encoded).log_softmax(-1)).abs().max() < 1e-5
    assert (got.seq - back[2](decoded).log_softmax(-1)).abs().max() < 1e-5


def test_a_recipes_output_folder_is_averaged(recipe_output, tmp_path):
    output, checkpointer, normalizer = recipe_output
    wanted = average_checkpoints(checkpointer.find_checkpoints(max_key="ACC"), "model")
    for number, source in enumerate((output, output / "save")):
        assert len(find_checkpoints(source)) == 2
        folder = tmp_path / f"model{number}"
        expect(import_speechbrain(source, folder, YAML, SMALL), wanted, normalizer)


def test_one_checkpoint_is_taken_as_it_is(recipe_output, tmp_path):
    _, checkpointer, normalizer = recipe_output
    best = checkpointer.find_checkpoint(max_key="ACC")
    state = torch.load(best.paramfiles["model"])
    expect(
        import_speechbrain(best.path, tmp_path / "m", YAML, SMALL), state, normalizer
    )


def test_inside_the_first_epoch_the_newest_is_taken(recipe_output):
    output, checkpointer, _ = recipe_output
    inside = [
        checkpoint.path
        for checkpoint in checkpointer.list_checkpoints()
        if "brain_intra_epoch_ckpt" in checkpoint.meta
    ]
    assert len(inside) == 1 and inside[0] not in find_checkpoints(output)
    for path in find_checkpoints(output):
        shutil.rmtree(path)
    assert find_checkpoints(output) == inside


def test_a_tokenizer_that_the_recipe_trained_is_found(recipe_output, tmp_path):
    output, _, _ = recipe_output
    spm = (output / "save/tokenizer.ckpt").rename(output / "save/7_char.model")
    import_speechbrain(output, tmp_path / "model", YAML, SMALL)
    shutil.copy(spm, output / "save/5_bpe.model")
    with pytest.raises(ValueError, match="several tokenizers: 5_bpe.model, 7_char.mod"):
        import_speechbrain(output, tmp_path / "model", YAML, SMALL)
    for file in (output / "save").glob("*.model"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match="holds no tokenizer.ckpt: copy the"):
        import_speechbrain(output, tmp_path / "model", YAML, SMALL)


def test_the_notes_of_a_checkpoint_run_nothing(recipe_output, tmp_path):
    output, _, _ = recipe_output
    notes = find_checkpoints(output)[0] / "CKPT.yaml"
    mark = tmp_path / "executed"
    with open(notes, "a", encoding="utf-8") as file:
        file.write(f"WER: !!python/object/apply:os.system ['touch {mark}']\n")
    assert len(find_checkpoints(output)) == 2 and not mark.exists()
    notes.write_text("")
    with pytest.raises(ValueError, match="CKPT.yaml is damaged"):
        find_checkpoints(output)


def test_what_is_damaged_or_missing_is_named(recipe_output, tmp_path, capsys):
    output, _, _ = recipe_output
    file = find_checkpoints(output)[0] / "model.ckpt"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="model.ckpt is damaged"):
        import_speechbrain(output, tmp_path / "model", YAML, SMALL)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="holds no model.ckpt or asr.ckpt"):
        import_speechbrain(output, tmp_path / "model", YAML, SMALL)
    arguments = ["convert", str(tmp_path / "no"), "model", "--recipe", str(YAML)]
    assert main(arguments) == 1
    assert "no such folder" in capsys.readouterr().err


def test_statistics_of_other_features_are_refused(recipe_output, tmp_path):
    output, _, _ = recipe_output
    file = find_checkpoints(output)[-1] / "normalizer.ckpt"
    statistics = torch.load(file)
    statistics["glob_mean"] = statistics["glob_mean"][:40]
    torch.save(statistics, file)
    with pytest.raises(ValueError, match=r"mean of \(40,\) features, expected \(80,\)"):
        import_speechbrain(output, tmp_path / "model", YAML, SMALL)


def test_ours_goes_back_strictly(recipe_output, tmp_path):
    output, checkpointer, normalizer = recipe_output
    import_speechbrain(output, tmp_path / "model", YAML, SMALL)
    back = export_speechbrain(tmp_path / "model", tmp_path / "back")
    theirs, statistics = modules()
    # As a recipe's Pretrainer and Checkpointer read these files.
    theirs.load_state_dict(torch.load(back / "model.ckpt"), strict=True)
    statistics._load(back / "normalizer.ckpt")
    assert torch.equal(statistics.glob_mean, normalizer.glob_mean)
    wanted = average_checkpoints(checkpointer.find_checkpoints(max_key="ACC"), "model")
    for key, value in theirs.state_dict().items():
        assert torch.allclose(value, wanted[key], atol=1e-7), key


# SpeechBrain's Branchformer builds no attention for RoPEMHA.
PAIRS = [
    (encoder, attention)
    for encoder in ("conformer", "transformer", "branchformer")
    for attention in ("hypermixing", "RelPosMHAXL", "RoPEMHA", "regularMHA")
    if (encoder, attention) != ("branchformer", "RoPEMHA")
]


@pytest.mark.parametrize("encoder_module,attention_type", PAIRS)
def test_a_state_dict_of_ours_loads_strictly(encoder_module, attention_type):
    options = {
        "tgt_vocab": TOKENS,
        "input_size": 640,
        "dropout": 0.0,
        "activation": torch.nn.GELU,
        "encoder_module": encoder_module,
        "attention_type": attention_type,
        "normalize_before": True,
        "causal": False,
        "csgu_linear_units": 32,
        **SMALL,
    }
    ours, theirs = HyperConformerASR(**options), TransformerASR(**options)
    theirs.load_state_dict(add_position_tables(ours.state_dict()), strict=True)
    x, tokens = torch.randn(2, 40, 640), torch.tensor([[1, 3, 4], [1, 5, 6]])
    ones = torch.ones(2)
    with torch.no_grad():
        for got, wanted in zip(
            ours.eval()(x, tokens, ones), theirs.eval()(x, tokens, ones)
        ):
            assert (got - wanted).abs().max() < 1e-5


@pytest.mark.parametrize(
    "overrides,message",
    [
        ({"attention_type": "linear_attention"}, "the mixer 'linear_attention', which"),
        (
            {"mixer_options": {"normalize_by_frames": True}},
            "mixer_options.normalize_by_frames: True: SpeechBrain's has not",
        ),
        ({"frontend_causal": True}, "a causal front end"),
        ({"normalization": "level"}, "normalization: level: SpeechBrain's has not"),
        ({"normalization": "running_level"}, "normalization: running_level"),
        ({"num_decoder_layers": 0}, "no attention decoder"),
    ],
)
def test_what_speechbrain_would_compute_otherwise_is_refused(
    tmp_path, spm_file, overrides, message
):
    from hyperpyyaml import load_hyperpyyaml

    from hyperconformer.config import read_config, resolve_config
    from hyperconformer.hub.folder import save_model

    text = read_config(YAML, {**SMALL, **overrides})
    folders = {"data_folder": "", "output_folder": "", "vocab_size": TOKENS}
    text = resolve_config(text, folders, ["sample_rate", "extractor", "recognizer"])
    config = load_hyperpyyaml(text)
    parts = {name: config[name] for name in ("extractor", "recognizer")}
    save_model(tmp_path / "model", text, parts, spm_file)
    with pytest.raises(ValueError, match=message):
        export_speechbrain(tmp_path / "model", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_language_models_recipe_and_back(tmp_path, spm_file):
    theirs = TransformerLM(
        vocab=TOKENS,
        d_model=24,
        nhead=12,
        num_encoder_layers=2,
        num_decoder_layers=0,
        d_ffn=3072,
        dropout=0.0,
        activation=torch.nn.GELU,
        normalize_before=False,
    )
    output = tmp_path / "speechbrain"
    Checkpointer(output / "save", {"model": theirs}).save_checkpoint({"loss": 1.0})
    shutil.copy(spm_file, output / "save/tokenizer.ckpt")
    folder = tmp_path / "lm"
    yaml = RECIPES / "lm_transformer.yaml"
    import_speechbrain(output, folder, yaml, {"d_model": 24, "depth": 2})
    back = export_speechbrain(folder, tmp_path / "back")
    again = torch.load(back / "lm.ckpt")
    assert set(again) == set(theirs.state_dict())
    assert all(torch.equal(again[k], v) for k, v in theirs.state_dict().items())
    assert (back / "tokenizer.ckpt").read_bytes() == spm_file.read_bytes()
