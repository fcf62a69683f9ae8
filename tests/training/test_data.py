"""Tokenizers, and batches of joined utterances."""

import pytest
import torch
from speechbrain.tokenizers.SentencePiece import SentencePiece

from hyperconformer.training.data import JoiningBatch, load_tokenizer, train_tokenizer


def examples(count):
    return [
        {
            "id": str(i),
            "sig": torch.full((3 + i,), float(i)),
            "words": f"W{i}",
            "tokens": torch.tensor([10 + i]),
            "tokens_bos": torch.tensor([1, 10 + i]),
            "tokens_eos": torch.tensor([10 + i, 2]),
        }
        for i in range(count)
    ]


@pytest.mark.parametrize("fraction,size", [(0.0, 7), (0.6, 5), (1.0, 4)])
def test_nothing_is_lost_or_doubled(fraction, size):
    batch = JoiningBatch(fraction)(examples(7))
    assert len(batch.id) == size
    assert sorted("+".join(batch.id).split("+")) == [str(i) for i in range(7)]
    assert sorted(" ".join(batch.words).split()) == [f"W{i}" for i in range(7)]


def test_a_pair_has_one_begin_and_one_end():
    batch = JoiningBatch(1.0)(examples(2))
    first, second = (10 + int(name) for name in batch.id[0].split("+"))
    assert batch.tokens.data.tolist() == [[first, second]]
    assert batch.tokens_bos.data.tolist() == [[1, first, second]]
    assert batch.tokens_eos.data.tolist() == [[first, second, 2]]
    assert batch.sig.data.shape == (1, 7)


@pytest.mark.parametrize(
    "unit, size, message",
    [
        ("unigram", 1000, r"have \d+ unigram tokens at most; got vocab_size: 1000"),
        ("bpe", 1000, r"have \d+ bpe tokens at most; got vocab_size: 1000"),
        ("bpe", 8, r"need 12 bpe tokens at least.*; got vocab_size: 8"),
        ("unigram", 2, r"need 12 unigram tokens at least.*; got vocab_size: 2"),
        ("bpe", 0, "vocab_size must be a number of tokens, got 0"),
        ("bpe", "many", "vocab_size must be a number of tokens, got 'many'"),
        ("word", 20, "unknown token_unit 'word'.*char, unigram, bpe"),
    ],
)
def test_sizes_that_cannot_be_are_named(tmp_path, unit, size, message):
    manifest = tmp_path / "train.csv"
    manifest.write_text("ID,duration,wav,spk_id,wrd\n1,1.0,a.wav,s,GO HOME RUN\n")
    with pytest.raises(ValueError, match=message):
        train_tokenizer(manifest, tmp_path / "tokenizer", unit, size)
    assert not (tmp_path / "tokenizer").exists()


def test_fraction_out_of_range_is_refused():
    with pytest.raises(ValueError, match="join_fraction"):
        JoiningBatch(1.5)


@pytest.mark.parametrize("unit, size", [("char", 0), ("unigram", 20), ("bpe", 20)])
def test_a_tokenizer_is_speechbrains_without_its_path(tmp_path, unit, size):
    manifest = tmp_path / "train.csv"
    texts = ["GO ON", "GO HOME NOW", "STOP THE HOME RUN", "ON AND ON", "NOW STOP"]
    rows = [f"{i},1.0,a.wav,s,{text}\n" for i, text in enumerate(texts)]
    manifest.write_text("ID,duration,wav,spk_id,wrd\n" + "".join(rows))
    file = train_tokenizer(manifest, tmp_path / "with a blank", unit, size)
    ours = load_tokenizer(file)
    size = ours.vocab_size()
    assert file.name == f"{size}_{unit}.model"
    SentencePiece(
        str(tmp_path / "theirs"), size, str(manifest), "wrd", unit, bos_id=1, eos_id=2
    )
    theirs = load_tokenizer(tmp_path / "theirs" / file.name)
    for index in range(size):
        assert ours.id_to_piece(index) == theirs.id_to_piece(index)
        assert ours.get_score(index) == theirs.get_score(index)
    path = str(tmp_path).encode()
    assert path not in file.read_bytes()
    assert path in (tmp_path / "theirs" / file.name).read_bytes()
