"""Phones as a second task: its loss, its gradients, its dictionary, a run with it."""

import csv

import pytest
import torch
from safetensors.torch import load_file

from hyperconformer.training.ctc_crf import estimate_trigrams, score_all_sequences
from hyperconformer.training.phones import PhoneCTC, read_lexicon
from hyperconformer.training.resume import WholeCheckpointer

LEXICON = """;;; a comment
A       AH # the article, as spoken
A(2)    EY
BE      B IY

SEA     S IY
(PAREN  P AH
"""


@pytest.fixture
def lexicon(tmp_path):
    path = tmp_path / "words.dic"
    path.write_text(LEXICON)
    return path


def test_the_first_pronunciation_counts(lexicon):
    assert read_lexicon(lexicon) == {
        "A": ["AH"],
        "BE": ["B", "IY"],
        "SEA": ["S", "IY"],
        "(PAREN": ["P", "AH"],
    }


def test_the_loss_is_torchs_on_the_phones(lexicon):
    torch.manual_seed(0)
    phones = PhoneCTC(lexicon, 8, layer=2, weight=0.4, pronunciations={"A": "EY"})
    hidden = [torch.randn(2, 12, 8, requires_grad=True) for _ in range(4)]
    loss = phones(hidden, torch.tensor([1.0, 0.5]), ["BE A SEA", "A"])
    # Sorted: AH 1, B 2, EY 3, IY 4, P 5, S 6.
    log_probs = phones.head(phones.norm(hidden[2])).log_softmax(-1)
    expected = torch.nn.functional.ctc_loss(
        log_probs.transpose(0, 1),
        torch.tensor([[2, 4, 3, 6, 4], [3, 0, 0, 0, 0]]),
        torch.tensor([12, 6]),
        torch.tensor([5, 1]),
    )
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    loss.backward()
    assert [layer.grad is not None for layer in hidden] == [False, False, True, False]
    assert hidden[2].grad[1, 6:].eq(0).all()  # padding


def test_the_loss_is_computed_in_single_precision(lexicon):
    torch.manual_seed(0)
    phones = PhoneCTC(lexicon, 8, layer=1, weight=0.4)
    hidden, whole = [torch.randn(1, 40, 8)], torch.ones(1)
    # Sorted: AH 1, B 2, IY 3, P 4, S 5.
    with torch.autocast("cpu", torch.bfloat16):
        loss = phones(hidden, whole, ["BE A SEA"])
        logits = phones.head(phones.norm(hidden[0])).float()
    expected = torch.nn.functional.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1),
        torch.tensor([[2, 3, 1, 5, 3]]),
        torch.tensor([40]),
        torch.tensor([5]),
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_other_phone_sequences_compete(lexicon):
    torch.manual_seed(0)
    hidden, lengths = [torch.randn(2, 12, 8, requires_grad=True)], torch.ones(2)
    texts = ["BE A SEA", "A"]
    losses = {}
    for competition in (0.0, 0.5):
        torch.manual_seed(1)
        phones = PhoneCTC(lexicon, 8, 1, 0.4, competition=competition)
        phones.prepare(texts, num_layers=1)
        losses[competition] = phones(hidden, lengths, texts)
    # Sorted: AH 1, B 2, IY 3, P 4, S 5.
    scores = phones.head(phones.norm(hidden[0])).log_softmax(-1)
    trigrams = estimate_trigrams([[2, 3, 1, 5, 3], [1]], 5)
    others = score_all_sequences(scores, torch.tensor([12, 12]), trigrams)
    expected = losses[0.0] + 0.5 * (others / torch.tensor([5, 1])).mean()
    assert losses[0.5].item() == pytest.approx(expected.item(), abs=1e-5)


def test_phones_that_do_not_fit_into_the_frames_do_not_compete(lexicon):
    phones = PhoneCTC(lexicon, 8, 1, 0.4, competition=1.0)
    phones.prepare(["BE A SEA"], num_layers=1)
    hidden = [torch.randn(1, 4, 8, requires_grad=True)]
    loss = phones(hidden, torch.ones(1), ["BE A SEA"])  # 5 phones, 4 frames
    loss.backward()
    assert loss.item() == 0
    assert hidden[0].grad.eq(0).all()


def test_a_dropped_layer_is_no_error(lexicon):
    phones = PhoneCTC(lexicon, 8, layer=3, weight=0.4)
    hidden = [torch.randn(1, 9, 8) for _ in range(3)]
    assert phones(hidden, torch.ones(1), ["A BE"]).isfinite()


def test_words_without_pronunciation_are_named(lexicon):
    phones = PhoneCTC(lexicon, 8, layer=1, weight=0.4)
    phones.prepare(["A SEA", "BE"], num_layers=1)
    with pytest.raises(ValueError, match="words.dic lacks 2 words.*: AN, X"):
        phones.prepare(["A X", "AN SEA X"], num_layers=1)
    with pytest.raises(ValueError, match="layer 1, but the encoder has 0"):
        phones.prepare([], num_layers=0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"layer": 0}, "layer = 0"),
        ({"weight": 1.0}, "weight = 1.0"),
        ({"competition": 1.5}, "competition = 1.5"),
    ],
)
def test_settings_out_of_range_are_refused(lexicon, options, message):
    with pytest.raises(ValueError, match=message):
        PhoneCTC(lexicon, 8, **{"layer": 1, "weight": 0.5, **options})


def test_other_files_are_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="no such pronunciation dictionary.*--phone_ctc=null"
    ):
        read_lexicon(tmp_path / "none.dic")
    for text, message in (("", "no pronunciations"), ("A AH\nB\n", ":2: expected")):
        (tmp_path / "bad.dic").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_lexicon(tmp_path / "bad.dic")


@pytest.mark.integration
def test_a_run_hears_phones_and_ships_none(train_tiny, printed, tmp_path):
    folder, lexicon = tmp_path / "run", tmp_path / "words.dic"
    option = (
        "--phone_ctc=!new:hyperconformer.PhoneCTC "
        f"{{lexicon: {lexicon}, d_model: !ref <d_model>, layer: 1, weight: 0.4}}"
    )
    views = ["--augment_from_epoch=1", "--consistency_weight=0.2"]
    lexicon.write_text("A AH\n")
    assert train_tiny(folder, option, *views) != 0
    assert "words of the training set" in printed(folder)
    with open(folder / "manifests/train-spoken.csv") as file:
        words = {word for row in csv.DictReader(file) for word in row["wrd"].split()}
    # Letters will do for phones.
    lexicon.write_text("".join(f"{word} {' '.join(word)}\n" for word in words))
    assert train_tiny(folder, option, *views) == 0, printed(folder)
    weights = load_file(folder / "model/model.safetensors")
    assert not any("phone" in name for name in weights)
    # Tested without phones or beam, the finished model stays as it is.
    before = (folder / "model/hyperparams.yaml").read_text()
    search = "!new:hyperconformer.NGramSearcher {}"
    status = train_tiny(folder, "--test_only", f"--test_search={search}")
    assert status == 0, printed(folder)
    assert not (folder / "model/lm.arpa").exists()
    assert (folder / "model/hyperparams.yaml").read_text() == before
    kept = WholeCheckpointer(folder / "checkpoints").find_checkpoint().path
    head = torch.load(kept / "phone_ctc.ckpt", weights_only=True)["head.weight"]
    assert head.shape == (1 + len(set("".join(words))), 16)
