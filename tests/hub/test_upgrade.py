"""Model folders of older versions, which have no ``config.json``."""

import pathlib
import shutil

import pytest
import torch

from hyperconformer.hub.folder import load_model, read_settings
from hyperconformer.hub.upgrade import main, upgrade
from hyperconformer.lm.ngram import train_arpa
from hyperconformer.transcribe.offline import ASR


@pytest.fixture
def old_folder(tiny_model, tmp_path):
    """As version 0.2 left it."""
    folder = pathlib.Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / "config.json").unlink()
    path = folder / "hyperparams.yaml"
    text = path.read_text().replace("[3, 3]", "(3, 3)").replace("GELU {}", "GELU")
    assert "(3, 3)" in text and "GELU\n" in text
    path.write_text(text)
    return folder


def test_an_old_folder_is_named_with_what_to_do(old_folder):
    for source in (old_folder, old_folder.parent):  # as a run's output folder
        with pytest.raises(FileNotFoundError) as caught:
            ASR.from_hparams(source)
        assert "lacks config.json: it was saved by version 0.2" in str(caught.value)
        command = f"python -m hyperconformer.hub.upgrade {old_folder}"
        assert str(caught.value).endswith(command)


def test_an_upgraded_folder_is_the_same_model(old_folder, tiny_model, capsys):
    assert main([str(old_folder)]) == 0
    assert capsys.readouterr().out.strip() == str(old_folder / "config.json")
    assert read_settings(old_folder) == read_settings(tiny_model)
    for name in ("hyperparams.yaml", "model.safetensors", "tokenizer.model"):
        assert (old_folder / name).read_bytes() == (tiny_model / name).read_bytes()
    samples = torch.rand(16000) - 0.5
    text = ASR.from_hparams(old_folder).transcribe(samples, 16000)
    assert text == ASR.from_hparams(tiny_model).transcribe(samples, 16000)
    assert main([str(old_folder), str(old_folder / "none")]) == 1
    assert capsys.readouterr().err.count("error: ") == 2


def test_version_0_1_named_modules(old_folder):
    path = old_folder / "hyperparams.yaml"
    text = path.read_text().replace("hyperconformer.", "hyperconformer.integration.a.")
    path.write_text(text)
    upgrade(old_folder)
    assert ASR.from_hparams(old_folder).sample_rate_hz == 16000
    assert "integration" not in path.read_text()


def test_word_ngrams_keep_their_weights(old_folder):
    train_arpa(["AB BA"], old_folder / "lm.arpa")
    with open(old_folder / "hyperparams.yaml", "a") as file:
        file.write("lm_weight: 0.3\nword_bonus: 0.5\n")
    upgrade(old_folder)
    ngram = ASR.from_hparams(old_folder).ngram
    assert (ngram["lm_weight"], ngram["word_bonus"]) == (0.3, 0.5)


@pytest.mark.parametrize(
    "old,new,message",
    [
        ("d_ffn: 32", "d_ffn: 48", "has shape"),
        ("n_mels: 16", "n_mels: !apply:os.getcwd", "cannot stand in a model"),
        ("torch.nn.GELU", "torch.nn.Softplus", "unknown class 'torch.nn.Softplus'"),
    ],
)
def test_what_does_not_load_gets_no_file(old_folder, old, new, message):
    path = old_folder / "hyperparams.yaml"
    text = path.read_text().replace(old, new)
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        upgrade(old_folder)
    assert not (old_folder / "config.json").exists() and path.read_text() == text


def test_classes_of_ones_own_need_trust(old_folder):
    path = old_folder / "hyperparams.yaml"
    path.write_text(path.read_text().replace("torch.nn.GELU", "torch.nn.Softplus"))
    assert main(["--trusted", str(old_folder)]) == 0
    config, _ = load_model(old_folder, ["extractor", "recognizer"], trusted=True)
    assert config["sample_rate"] == 16000


def test_links_do_not_lead_out_of_the_folder(old_folder, tmp_path):
    (old_folder / "hyperparams.yaml").rename(tmp_path / "secret")
    (old_folder / "hyperparams.yaml").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="leads out of its folder"):
        upgrade(old_folder)
