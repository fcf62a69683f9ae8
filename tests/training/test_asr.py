"""train.py from YAML to transcript, on a handful of synthesised utterances."""

import copy
import functools
import json
import pathlib
import re
import shlex
import shutil
import textwrap
from types import SimpleNamespace

import pytest
import soundfile
import torch
from ruamel.yaml import YAML
from speechbrain.lobes.features import Fbank

from hyperconformer.cli.main import main
from hyperconformer.corpora.manifest import read_manifest
from hyperconformer.evaluation.plots import read_train_log
from hyperconformer.hub.folder import find_model
from hyperconformer.model.features import FeatureExtractor
from hyperconformer.search.greedy import GreedySearcher
from hyperconformer.training.asr import measure_features, train
from hyperconformer.training.experiment import require_tokens
from hyperconformer.training.fine_tuning import start_from
from hyperconformer.training.phones import PhoneCTC
from hyperconformer.transcribe.offline import ASR

pytestmark = pytest.mark.integration

ROOT = pathlib.Path(__file__).resolve().parents[2]
CORPUS = "{train_utterances: 12, valid_utterances: 4, test_utterances: 4}"


def tiny(folder, corpus):
    """What makes a run of seconds of any recipe."""
    return [
        f"--output_folder={folder}",
        f"--data_folder={corpus}",
        f"--corpus_options={CORPUS}",
        "--d_model=16",
        "--nhead=2",
        "--d_ffn=32",
        "--num_encoder_layers=1",
        "--num_decoder_layers=1",
        "--kernel_size=7",
        "--augment_from_epoch=2",
        "--consistency_weight=0.2",
        "--join_fraction=0.5",
        "--max_batch_utterances=4",
    ]


@pytest.fixture(scope="module")
def run(runner, tmp_path_factory):
    """train.py on a tiny model; returns all that it has printed."""

    def run(folder, *arguments, corpus=None, yaml="hyperconformer"):
        log = tmp_path_factory.mktemp("log") / "log.txt"
        file = ROOT / f"hparams/{yaml}.yaml"
        settings = tiny(folder, corpus or folder.parent / "spoken")
        status = runner.run([file, *settings, *arguments], log)
        printed = log.read_text()
        assert status == 0, printed
        return printed

    return run


@pytest.fixture(scope="module")
def trained(run, tmp_path_factory):
    """One epoch, then the same command again for two more, and what that printed."""
    folder = tmp_path_factory.mktemp("run") / "out"
    run(folder, "--number_of_epochs=1")
    return folder, run(folder, "--number_of_epochs=3")


def test_the_run_continues_where_it_stopped(trained):
    folder, _ = trained
    log = read_train_log(folder / "train_log.txt")
    assert log["epoch"] == [1, 2, 3]
    assert log["valid loss"][-1] < log["valid loss"][0]
    updates = log["updates"]
    assert updates[1] == 2 * updates[0] and updates[2] == 3 * updates[0]


def test_the_run_leaves_what_people_look_for(trained):
    folder, printed = trained
    for name in ("curve.png", "wer_test.txt", "wer_valid.txt", "hyperparams.yaml"):
        assert (folder / name).stat().st_size > 0
    assert "WER %" in printed
    assert "hyperconformer transcribe" in printed


def test_the_model_transcribes(trained, capsys):
    folder, printed = trained
    audio = next((folder.parent / "spoken").rglob("test-spoken/**/*.flac"))
    assert main(["transcribe", str(audio), "--model", str(folder)]) == 0
    assert capsys.readouterr().out.rstrip("\n") in printed


def test_the_model_is_the_average_of_the_last_checkpoints(trained):
    folder, _ = trained
    states = [
        torch.load(file, weights_only=True)
        for file in (folder / "checkpoints").glob("*/recognizer.ckpt")
    ]
    assert len(states) == 3
    model = ASR.from_hparams(folder).recognizer.state_dict()
    for key, value in model.items():
        mean = torch.stack([state[key] for state in states]).mean(0)
        assert torch.allclose(value, mean, atol=1e-6), key


def test_batch_order_and_company_do_not_change_the_text(trained):
    asr = ASR.from_hparams(trained[0])
    utterances = [torch.randn(n) for n in (16000, 9000, 4000)]
    wavs = torch.nn.utils.rnn.pad_sequence(utterances, batch_first=True)
    lengths = torch.tensor([1.0, 9000 / 16000, 4000 / 16000])
    together = [str(text) for text in asr.transcribe_batch(wavs, lengths)]
    assert together == [str(asr.transcribe(u, 16000)) for u in utterances]
    backwards = asr.transcribe_batch(wavs.flip(0), lengths.flip(0))
    assert together[::-1] == [str(text) for text in backwards]


def test_bad_files_are_named_and_do_not_stop_the_rest(trained, capsys, tmp_path):
    folder, _ = trained
    audio = str(next((folder.parent / "spoken").rglob("*.flac")))
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"no audio")
    code = main(["transcribe", str(bad), audio, "--model", str(folder)])
    output = capsys.readouterr()
    assert code == 1 and "1 of 2 files failed" in output.err
    assert str(bad) in output.err and audio in output.out


def test_too_short_is_refused(trained):
    asr = ASR.from_hparams(trained[0])
    with pytest.raises(ValueError, match="at least 0.1 s"):
        asr.transcribe([0.0], 16000)


def test_missing_model_is_named(tmp_path, capsys):
    assert main(["transcribe", "a.wav", "--model", str(tmp_path / "none")]) == 1
    assert "no such model folder" in capsys.readouterr().err
    assert main(["transcribe", "a.wav", "--model", str(tmp_path)]) == 1
    assert "lacks config.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    "overrides,message",
    [
        ({"lerning_rate": 1}, "unknown key 'lerning_rate'"),
        ({"corpus": "spokn"}, "'spokn'.*spoken"),
        ({"corpus_options": {"voices": 3}}, "voices.*train_utterances"),
        ({"train_split": "training"}, "no split 'training'; it has: test, train"),
        ({"attention_type": "hypermixin"}, "did you mean 'hypermixing'"),
        ({"mixer_options": {"tide": True}}, "did you mean 'tied'"),
        ({"max_duration_s": 0.01}, "no utterance of at most 0.01 s"),
        ({"corpus": "librispeech", "corpus_options": {}}, "LibriSpeech.*OpenSLR"),
        ({"corpus": "an4", "corpus_options": {}}, "(?s)does not exist.*AN4"),
    ],
)
def test_mistakes_are_named(trained, overrides, message):
    folder = trained[0].parent
    here = overrides.get("corpus") in (None, "spokn")
    settings = {
        "output_folder": str(folder / "mistake"),
        "data_folder": str(folder / ("spoken" if here else "none")),
        "corpus_options": YAML().load(CORPUS),
        **overrides,
    }
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(ROOT / "hparams/hyperconformer.yaml", {}, settings)


def test_mistakes_end_with_a_message_not_a_traceback(runner, tmp_path):
    file = ROOT / "hparams/hyperconformer.yaml"
    folder = tmp_path / "empty"
    folder.mkdir()
    for mistake, message in (
        ("--lerning_rate=1", "override of"),
        ("--device=cuda:99", "the device 'cuda:99' cannot be used"),
    ):
        log = tmp_path / f"{mistake}.txt"
        assert runner.run([file, mistake], log, folder=folder) == 1
        assert not list(folder.iterdir())
        said = log.read_text()
        assert said.strip().splitlines()[-1].startswith(f"train.py: {message}")
        assert "Traceback" not in said


@pytest.mark.parametrize("normalization", ["global", "utterance"])
def test_features_are_measured_only_where_that_is_used(trained, normalization):
    extractor = FeatureExtractor(Fbank(n_mels=8), 8, normalization)
    settings = SimpleNamespace(
        extractor=extractor,
        train_split="train",
        sample_rate=16000,
        seed=1,
        normalization_utterances=2,
    )
    manifest = next(trained[0].glob("manifests/*train*.csv"))
    measure_features(settings, {"train": manifest})
    assert extractor.mean.any().item() == (normalization == "global")
    extractor.mean.fill_(3.0)  # as the model has it that fine-tuning begins with
    measure_features(settings, {})
    assert (extractor.mean == 3.0).all()


@pytest.fixture
def contributing(runner, tmp_path):
    """Tries an example of CONTRIBUTING: its file and its command, in a new folder."""

    def train(module, *more, settings):
        text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
        blocks = re.findall(r"^ *```python\n(.*?)```", text, re.S | re.M)
        command = re.search(rf"^hyperconformer train (.*!name:{module}.*)$", text, re.M)
        name = re.search(rf"!name:{module}\.(\w+)", command[1])[1]
        (code,) = [code for code in blocks if re.search(rf"(class|def) {name}\b", code)]
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(code), encoding="utf-8")
        arguments = [*shlex.split(command[1]), *settings, "--number_of_epochs=1"]
        place = [one for one in arguments if one.startswith("--output_folder")][0]
        arguments.remove(place)  # `settings` has another
        log = tmp_path / "log.txt"
        status = runner.run([*arguments, *more], log, folder=tmp_path)
        printed = log.read_text()
        assert status == 0 and "hyperconformer transcribe" in printed, printed
        return (tmp_path / "out/hyperparams.yaml").read_text(encoding="utf-8")

    return train


def test_the_mixer_of_contributing_trains_as_it_stands_there(contributing, trained):
    settings = tiny("out", trained[0].parent / "spoken")
    saved = contributing("my_mixers", settings=settings)
    assert "!name:my_mixers.MeanMixer" in saved and "gain: 0.5" in saved


def test_the_corpus_of_contributing_trains_as_it_stands_there(
    contributing, trained, tmp_path
):
    manifests = {"train": "train", "valid": "dev", "test": "test"}
    for split, ours in manifests.items():
        for row in read_manifest(trained[0] / f"manifests/{ours}-spoken.csv"):
            wav = tmp_path / "FOLDER" / split / row["spk_id"] / f"{row['ID']}.wav"
            wav.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(wav, *soundfile.read(row["wav"]))
            wav.with_suffix(".txt").write_text(row["wrd"] + "\n", encoding="utf-8")
    ours = ("--data_folder", "--corpus_options")
    settings = [s for s in tiny("out", "FOLDER") if not s.startswith(ours)]
    assert "!name:my_corpora.prepare" in contributing("my_corpora", settings=settings)
    made = tmp_path / "out/manifests"
    counts = {split: len(read_manifest(made / f"{split}.csv")) for split in manifests}
    assert counts == {"train": 12, "valid": 4, "test": 4}


@pytest.fixture(scope="module")
def tuned(run, trained, tmp_path_factory):
    """No step from the trained model, with other tokens if it had its own; and what
    that printed."""
    folder = tmp_path_factory.mktemp("tuned")
    source = shutil.copytree(trained[0] / "model", folder / "source")
    arguments = [f"--init_from={source}", "--max_updates=1", "--lr=0"]
    arguments += ["--token_unit=bpe", "--vocab_size=30"]
    corpus = trained[0].parent / "spoken"
    printed = run(folder / "out", *arguments, corpus=corpus)
    shutil.rmtree(source)
    again = functools.partial(run, folder / "out", *arguments, corpus=corpus)
    return folder / "out", printed, again


def test_fine_tuning_begins_with_the_other_model(trained, tuned):
    folder, printed, _ = tuned
    start, after = ASR.from_hparams(trained[0]), ASR.from_hparams(folder)
    for part in ("recognizer", "extractor"):
        theirs = getattr(after, part).state_dict()
        for key, value in getattr(start, part).state_dict().items():
            assert torch.equal(theirs[key], value), key
    tokens = [asr.tokenizer.serialized_model_proto() for asr in (start, after)]
    assert tokens[0] == tokens[1]
    assert "measuring features" not in printed
    assert "settings differ" not in printed


def test_fine_tuning_goes_on_without_the_other_model(tuned):
    _, printed, again = tuned
    assert "beginning with the weights" in printed
    assert "beginning with the weights" not in again("--number_of_epochs=9")


def test_a_phone_head_goes_on_where_phones_and_layer_are_the_same(tmp_path, caplog):
    """Of the published recogniser, whose head stands on the normalised output."""
    source = "hyperconformer-librispeech"
    published = ASR.from_hparams(source, search=GreedySearcher())
    phones = published.recognizer.phones
    settings = (find_model(source) / "hyperparams.yaml").read_text()
    recognizer = copy.deepcopy(published.recognizer)
    recognizer.phones = recognizer.phone_head = None
    encoder = recognizer.transformer.encoder
    lexicon = tmp_path / "lexicon.txt"
    hidden = torch.randn(3, 192)
    expected = published.recognizer.phone_log_probs(encoder.norm(hidden))
    for words, layer, same in (
        (" ".join(phones), 8, True),
        (" ".join(phones), 4, False),
        ("AA", 8, False),
    ):
        lexicon.write_text(f"WORD  {words}\n")
        head = PhoneCTC(lexicon, 192, layer, 0.3)
        start_from(source, settings, published.extractor, recognizer, phone_ctc=head)
        found = head.head(head.norm(hidden)).log_softmax(-1)
        close = found.shape == expected.shape and found.allclose(expected, atol=1e-5)
        assert close == same
        assert ("phone_ctc begins anew" in caplog.text) != same


@pytest.mark.parametrize("normalization", ["level", "utterance"])
def test_fine_tuning_takes_statistics_that_mean_the_same(normalization):
    source = "hyperconformer-an4"
    settings = (find_model(source) / "hyperparams.yaml").read_text()
    settings = settings.replace(": level", f": {normalization}")
    extractor = FeatureExtractor(Fbank(n_mels=80), 80, normalization)
    start_from(source, settings, extractor, ASR.from_hparams(source).recognizer)
    assert extractor.mean.any().item() == (normalization == "level")


def test_fine_tuning_of_another_model_is_refused_or_named(trained, caplog):
    folder, asr = trained[0], ASR.from_hparams(trained[0])
    settings = (folder / "hyperparams.yaml").read_text()
    parts = asr.extractor, asr.recognizer
    other = ASR.from_hparams("hyperconformer-an4")
    with pytest.raises(ValueError, match="other tensors than the settings of this run"):
        start_from(folder, settings, other.extractor, other.recognizer)
    telephone = settings.replace("sample_rate: 16000", "sample_rate: 8000")
    with pytest.raises(ValueError, match="trained at 16000 Hz, .* sample_rate: 8000"):
        start_from(folder, telephone, *parts)
    start_from(folder, settings.replace("causal: false", "causal: true"), *parts)
    assert "recognizer.frontend.causal (False there, True here)" in caplog.text


def test_fine_tuning_reads_no_bomb(trained, tmp_path):
    folder, asr = trained[0], ASR.from_hparams(trained[0])
    bomb = shutil.copytree(folder / "model", tmp_path / "bomb")
    (bomb / "config.json").write_text("[" * 20000 + "]" * 20000)
    with pytest.raises(ValueError, match="bomb/config.json is more than 32 levels"):
        start_from(bomb, "sample_rate: 16000", asr.extractor, asr.recognizer)


def test_fine_tuning_onto_other_tokens_keeps_the_encoder(run, trained, tmp_path):
    source, folder = trained[0], tmp_path / "out"
    arguments = [f"--init_from={source}", "--new_head=true", "--max_updates=1"]
    arguments += ["--lr=0", "--token_unit=bpe", "--vocab_size=30"]
    printed = run(folder, *arguments, corpus=source.parent / "spoken")
    assert "beginning with the encoder" in printed
    assert "settings differ" not in printed
    start, after = ASR.from_hparams(source), ASR.from_hparams(folder)
    assert after.tokenizer.vocab_size() == 30
    theirs = start.recognizer.state_dict()
    for key, value in after.recognizer.state_dict().items():
        if key.startswith(("frontend.", "transformer.encoder.")):
            assert torch.equal(value, theirs[key]), key
        if key in ("ctc_head.weight", "decoder_head.weight"):
            assert value.shape[0] == 30 and value.any()
    assert torch.equal(after.extractor.mean, start.extractor.mean)


def test_a_new_head_has_an_encoder_to_stand_on(trained):
    overrides = {"output_folder": str(trained[0].parent / "none"), "new_head": True}
    with pytest.raises(ValueError, match="new_head goes with init_from"):
        train(ROOT / "hparams/hyperconformer.yaml", {}, overrides)


def test_another_model_in_the_same_folder_is_refused_before_anything(trained):
    folder = trained[0]
    before = {
        path: (path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.rglob("*")
        if path.is_file()
    }
    overrides = dict(
        argument.removeprefix("--").split("=", 1)
        for argument in tiny(folder, folder.parent / "spoken")
    )
    text = "\n".join(f"{key}: {value}" for key, value in overrides.items())
    text += "\nattention_type: RoPEMHA"
    message = r"attention_type \(hypermixing there, RoPEMHA here\).*--output_folder"
    with pytest.raises(ValueError, match=message):
        train(ROOT / "hparams/hyperconformer.yaml", {}, text)
    for path, stamp in before.items():
        assert stamp == (path.stat().st_mtime_ns, path.stat().st_size), path


def test_what_a_tokenizer_lacks_is_named(trained):
    asr = ASR.from_hparams(trained[0])
    with pytest.raises(ValueError, match="lacks .* hold: '7', 'Ü'"):
        require_tokens(asr.tokenizer, ["ONE Ü", "7 ONE", "ONE"], "its")


def test_half_precision_trains(run, trained, tmp_path):
    corpus = trained[0].parent / "spoken"
    options = ("--number_of_epochs=1", "--precision=bf16")
    printed = run(tmp_path / "out", *options, corpus=corpus)
    assert "training precision: `--precision=bf16`" in printed
    (loss,) = read_train_log(tmp_path / "out/train_log.txt")["train loss"]
    full = read_train_log(trained[0] / "train_log.txt")["train loss"][0]
    # A hundred roundings of 2^-9 each, adding up as their square root.
    assert abs(loss - full) < 10 * 2**-9 * full


def test_test_only_evaluates_without_training(run, trained):
    folder, printed = trained
    before = (folder / "train_log.txt").read_text()
    again = run(folder, "--number_of_epochs=9", "--test_only")
    assert read_train_log(folder / "train_log.txt")["epoch"] == [1, 2, 3]
    assert (folder / "train_log.txt").read_text() != before
    table = printed[printed.index(f"{'split':<20}") :].split("$")[0]
    assert table in again


def test_a_streaming_run_decodes_at_every_chunk_and_streams(run, trained, capsys):
    folder = trained[0].parent / "streaming"
    chunks = ("--test_chunks_ms=[null, 640, 320]", "--chunkwise_prob=1.0")
    epochs = "--number_of_epochs=1"
    printed = run(folder, *chunks, epochs, yaml="hyperconformer_streaming")
    log = (folder / "train_log.txt").read_text()
    for name in ("test", "test_640ms", "test_320ms", "valid_640ms"):
        assert f"test set: {name} -" in log
        assert f"{name:<20}" in printed
        assert (folder / f"wer_{name}.txt").stat().st_size > 0
    # Frames that see less of an utterance have other losses.
    splits = json.loads((folder / "results.json").read_text())["splits"]
    losses = {splits[name]["loss"] for name in ("test", "test_640ms", "test_320ms")}
    assert len(losses) == 3
    audio = str(next((folder.parent / "spoken").rglob("test-spoken/**/*.flac")))
    command = ["transcribe", "--stream", "--chunk-ms=320", "--model", str(folder)]
    assert main([*command, audio, audio]) == 0
    first, second, *_ = capsys.readouterr().out.split("\n")
    assert first == second
    assert main([*command, "--nbest=2", audio]) == 0
    assert capsys.readouterr().out
