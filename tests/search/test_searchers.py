"""Joint decoding with a language model, alone and at the end of a training run."""

import itertools
import json
import math
import pathlib
import sys

import pytest
import torch

from hyperconformer.hub.folder import MAX_BYTES, NGRAM_FILE, load_model, save_model
from hyperconformer.lm.ngram import NGramScorer, train_arpa
from hyperconformer.model.recognizer import Recognition, Recognizer
from hyperconformer.model.transformer_asr import HyperConformerASR
from hyperconformer.search.ctc_beam import CTCSearcher, NGramSearcher, _require_own_case
from hyperconformer.search.greedy import GreedySearcher
from hyperconformer.search.joint import JointSearcher
from hyperconformer.training import asr as run
from hyperconformer.training import language_model
from hyperconformer.training.data import load_tokenizer, train_tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOKENS = 9  # unknown, begin, end, the space and A to E


def language_model_of(source):
    """The language model and the tokenizer of a model folder."""
    config, tokenizer = load_model(source, ["language_model"])
    return config["language_model"], tokenizer


def recognizer(layers=1, vocab_size=TOKENS):
    transformer = HyperConformerASR(
        tgt_vocab=vocab_size,
        input_size=8,
        d_model=16,
        nhead=2,
        num_encoder_layers=1,
        num_decoder_layers=layers,
        d_ffn=32,
        kernel_size=7,
        normalize_before=True,
        causal=False,
    )
    return Recognizer(None, transformer, 16, vocab_size).eval()


def test_the_language_model_reloads_with_the_same_logits(lm_folder):
    folder, model, _ = lm_folder
    loaded, tokenizer = language_model_of(folder)
    tokens = torch.randint(TOKENS, (2, 12))
    assert torch.equal(loaded(tokens), model(tokens))
    assert not loaded.training and tokenizer.vocab_size() == TOKENS


def test_hypotheses_are_lists_of_tokens_without_begin_and_end(lm_folder):
    search = JointSearcher(recognizer(), lm_folder[0], beam_size=3)
    lengths = torch.tensor([1.0, 5 / 12, 9 / 12])
    hypotheses = search(torch.randn(3, 12, 16), lengths)[0]
    assert len(hypotheses) == 3
    for tokens in hypotheses:
        assert isinstance(tokens, list)
        assert all(isinstance(token, int) and 2 < token < TOKENS for token in tokens)


def test_one_frame_is_enough(lm_folder):
    search = JointSearcher(recognizer(), lm_folder[0], max_decode_ratio=0.3)
    assert search(torch.randn(2, 5, 16), torch.tensor([0.2, 0.2]))[0] == [[], []]


@pytest.mark.parametrize("ctc_weight", [0.0, 0.4])
def test_padding_changes_nothing(lm_folder, ctc_weight):
    search = JointSearcher(
        recognizer(), lm_folder[0], ctc_weight=ctc_weight, beam_size=3
    )
    short, long = torch.randn(7, 16), torch.randn(10, 16)
    batch = 100 * torch.randn(2, 13, 16)
    batch[0, :7], batch[1, :10] = short, long
    # Even the longest utterance is shorter than the batch.
    together = search(batch, torch.tensor([7 / 13, 10 / 13]))
    for i, utterance in enumerate((short, long)):
        alone = search(utterance[None], torch.ones(1))
        assert together[0][i] == alone[0][0]
        assert torch.isclose(together[2][i], alone[2][0], atol=1e-5)


def test_one_utterance_is_decoded_as_in_a_batch_and_no_stream_begins(lm_folder):
    search, tokenizer = JointSearcher(recognizer(), beam_size=3), lm_folder[2]
    encoded, lengths = torch.randn(2, 12, 16), torch.tensor([12, 7])
    ctc = torch.zeros(2, 12, TOKENS)
    batch = Recognition(ctc, lengths, encoded, None)
    for i, ((together,), length) in enumerate(
        zip(search.hypotheses(batch, tokenizer), lengths)
    ):
        (alone,) = search.decode(encoded[i, :length], tokenizer)
        assert alone.tokens == together.tokens
        assert alone.score == pytest.approx(together.score, abs=1e-5)
    assert not search.streams
    with pytest.raises(ValueError, match="JointSearcher needs the whole utterance"):
        search.begin(tokenizer)


def best_by_exhaustion(model, lm, encoded, ctc_weight, lm_weight, longest):
    """Scores every sequence of tokens with its end, and returns the best."""
    letters = range(3, TOKENS)
    memory = encoded[None]
    frames = model.ctc_head(memory).log_softmax(-1)
    best = (-float("inf"), None)
    for size in range(longest):
        for tokens in itertools.product(letters, repeat=size):
            inputs = torch.tensor([[1, *tokens]])
            targets = [*tokens, 2]
            places = range(len(targets))
            decoded, _ = model.transformer.decode(inputs, memory)
            decoder = model.decoder_head(decoded).log_softmax(-1)[0, places, targets]
            language = lm(inputs).log_softmax(-1)[0, places, targets]
            ctc = -torch.nn.functional.ctc_loss(
                frames.transpose(0, 1),
                torch.tensor([tokens], dtype=torch.long),
                torch.tensor([len(encoded)]),
                torch.tensor([size]),
                reduction="sum",
            )
            score = (1 - ctc_weight) * decoder.sum() + ctc_weight * ctc
            score = (score + lm_weight * language.sum()) / len(targets)
            best = max(best, (score.item(), list(tokens)))
    return best


@torch.no_grad()
def test_a_wide_beam_finds_the_best_of_all_hypotheses(lm_folder):
    folder, lm, _ = lm_folder
    model = recognizer()
    # Three frames: a hypothesis has at most two tokens and an end.
    encoded = torch.randn(3, 16)
    for ctc_weight, lm_weight in [(0.0, 0.0), (0.4, 0.0), (0.4, 0.5), (0.2, 2.0)]:
        search = JointSearcher(
            model, folder, lm_weight=lm_weight, ctc_weight=ctc_weight, beam_size=60
        )
        hypotheses, _, scores, _ = search(encoded[None], torch.ones(1))
        score, tokens = best_by_exhaustion(
            model, lm, encoded, ctc_weight, lm_weight, longest=3
        )
        assert hypotheses[0] == tokens
        assert abs(scores[0].item() - score) < 1e-4


def test_the_language_model_has_its_say(lm_folder, tmp_path):
    """With all the weight on it, it dictates: here B, A, D and the end."""
    folder, _, tokenizer = lm_folder
    lm, _ = language_model_of(folder)
    chain = [1, *tokenizer.encode("BAD"), 2]
    with torch.no_grad():
        for parameter in lm.layers.parameters():
            parameter.zero_()
        lm.token_emb.weight.copy_(torch.eye(TOKENS, 8))
        lm.norm.weight.fill_(1.0)
        lm.out.weight.zero_()
        lm.out.bias.zero_()
        for token, following in zip(chain, chain[1:]):
            lm.out.weight[following, token] = 5.0
    text = (folder / "model/hyperparams.yaml").read_text()
    tokens = folder / "model/tokenizer.model"
    save_model(tmp_path, text, {"language_model": lm}, tokens)
    search = JointSearcher(recognizer(), tmp_path, lm_weight=1e3, beam_size=3)
    hypotheses, *_ = search(torch.randn(2, 20, 16), torch.tensor([1.0, 0.8]))
    assert [tokenizer.decode(tokens) for tokens in hypotheses] == ["BAD", "BAD"]


def test_tokens_that_differ_are_refused(lm_folder, tmp_path):
    folder, _, tokenizer = lm_folder
    manifest = tmp_path / "train.csv"
    manifest.write_text("ID,duration,wav,spk_id,wrd\n1,1.0,a.wav,s,FEE CAB DAD\n")
    other = load_tokenizer(train_tokenizer(manifest, tmp_path, "char", 0))
    search = JointSearcher(recognizer(), folder)
    search.prepare(tokenizer, [], tmp_path)
    with pytest.raises(ValueError, match="other tokens.*tokenizer_file"):
        search.prepare(other, [], tmp_path)
    JointSearcher(recognizer()).prepare(other, [], tmp_path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"ctc_weight": 1.0}, r"ctc_weight must be in \[0, 1\)"),
        ({"lm_weight": -1.0}, "lm_weight >= 0"),
        ({"beam_size": 0}, "beam_size >= 1"),
        ({"lm_folder": "none"}, "no such model folder: none"),
        ({"recognizer": recognizer(layers=0)}, "got num_decoder_layers: 0"),
        ({"recognizer": recognizer(vocab_size=12)}, "has 9 tokens, the recogniser 12"),
    ],
)
def test_mistakes_are_named(lm_folder, changes, message):
    options = {"recognizer": recognizer(), "lm_folder": lm_folder[0], **changes}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        JointSearcher(**options)


def test_the_folder_of_a_recogniser_is_refused(lm_folder, tmp_path):
    for name in ("model.safetensors", "tokenizer.model"):
        (tmp_path / name).write_bytes((lm_folder[0] / "model" / name).read_bytes())
    settings = json.loads((lm_folder[0] / "model/config.json").read_text())
    settings["recognizer"] = settings.pop("language_model")
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="hold language_model, but holds: recognizer"):
        language_model_of(tmp_path)


def test_an_ngram_search_needs_a_folder_for_its_model():
    with pytest.raises(ValueError, match="needs a folder for its model, got None"):
        NGramSearcher().prepare(None, ["A"], None)


@pytest.mark.integration
def test_a_run_decodes_with_the_language_model(tmp_path):
    """hparams/lm.yaml, then hparams/joint_lm.yaml, both tiny."""
    corpus = {
        "data_folder": str(tmp_path / "spoken"),
        "corpus_options": {
            "train_utterances": 12,
            "valid_utterances": 4,
            "test_utterances": 4,
        },
        "d_model": 16,
    }
    language_model.train(
        ROOT / "hparams/lm.yaml",
        {},
        {
            **corpus,
            "output_folder": str(tmp_path / "lm"),
            "depth": 1,
            "heads": 2,
            "n_local_attn_heads": 1,
            "number_of_epochs": 1,
        },
    )
    # The shipped file looks for results/lm.
    text = (ROOT / "hparams/joint_lm.yaml").read_text()
    assert "lm_folder: results/lm\n" in text and "beam_size: 10" in text
    text = text.replace("results/lm", str(tmp_path / "lm"))
    text = text.replace("beam_size: 10", "beam_size: 2\n    max_decode_ratio: 0.2")
    text = text.replace("base: ", f"base: {ROOT}/hparams/")
    (tmp_path / "joint.yaml").write_text(text)
    results = run.train(
        tmp_path / "joint.yaml",
        {},
        {
            **corpus,
            "output_folder": str(tmp_path / "asr"),
            "nhead": 2,
            "d_ffn": 32,
            "num_encoder_layers": 1,
            "num_decoder_layers": 1,
            "kernel_size": 7,
            "number_of_epochs": 2,
            "max_batch_utterances": 4,
        },
    )
    assert set(results) == {"valid", "test"}
    alignments = (tmp_path / "asr/wer_test.txt").read_text()
    assert alignments.count("%WER") >= 5 and "⁇" not in alignments


class TestNGramSearcher:
    """CTC beam search with the training set's words."""

    WORDS = ["STOP", "GO"]

    def search(self, folder, **options):
        manifest = folder / "train.csv"
        manifest.write_text("ID,duration,wav,spk_id,wrd\n1,1.0,a.wav,s,STOP GO POTS\n")
        tokenizer = load_tokenizer(train_tokenizer(manifest, folder, "char", 0))
        search = NGramSearcher(**options)
        search.prepare(tokenizer, ["STOP GO", "STOP"], folder)
        return search, tokenizer

    @staticmethod
    def recognition(tokenizer, *frames):
        """One token a frame; a second one, if named, is nearly as likely."""
        probs = torch.full((1, len(frames), tokenizer.vocab_size()), 1e-4)
        for frame, names in enumerate(frames):
            for name, prob in zip(names, (0.55, 0.45)):
                probs[0, frame, tokenizer.piece_to_id(name)] = prob
        log_probs = probs.log().log_softmax(-1)
        return Recognition(log_probs, torch.tensor([len(frames)]), None, None)

    def test_words_of_the_training_set_are_preferred(self, tmp_path):
        search, tokenizer = self.search(tmp_path)
        frames = [("▁",), ("S",), ("T",), ("O",), ("T", "P")]
        recognition = self.recognition(tokenizer, *frames)
        assert search.texts(recognition, tokenizer) == ["STOP"]

    def test_impossible_settings_are_refused(self):
        with pytest.raises(ValueError, match="lm_weight must be >= 0"):
            NGramSearcher(lm_weight=-1.0)

    def test_kenlm_changes_nothing(self, tmp_path, monkeypatch):
        pytest.importorskip("kenlm")
        pytest.importorskip("pygtrie")
        own, tokenizer = self.search(tmp_path, order=2)
        assert isinstance(own.search.lm, NGramScorer)
        monkeypatch.setitem(MAX_BYTES, NGRAM_FILE, 10)
        kenlm, _ = self.search(tmp_path, order=2)
        assert type(kenlm.search.lm).__name__ == "KenlmScorer"
        log_probs = torch.randn(4, 24, tokenizer.vocab_size()).log_softmax(-1)
        recognition = Recognition(log_probs, torch.tensor([24, 9, 1, 17]), None, None)
        pairs = zip(
            own.hypotheses(recognition, tokenizer),
            kenlm.hypotheses(recognition, tokenizer),
        )
        for (ours,), (theirs,) in pairs:
            assert ours.text == theirs.text
            assert ours.score == pytest.approx(theirs.score, abs=1e-3)

    def test_missing_kenlm_is_named(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "kenlm", None)
        _, tokenizer = self.search(tmp_path)
        (tmp_path / "lm.bin").write_bytes(b"mmap lm http://kheafield.com/code")
        search = CTCSearcher(arpa=tmp_path / "lm.bin")
        with pytest.raises(ValueError, match="lm.bin is above .* pip install"):
            search.prepare(tokenizer)
        assert search.ngram == {}  # nothing that a model folder could keep


class TestCTCSearcher:
    """N-best, hot words and rescoring."""

    @staticmethod
    def recognition(tokenizer, *frames):
        """For each frame, pieces and their probabilities."""
        probs = torch.full((1, len(frames), tokenizer.vocab_size()), 1e-4)
        for frame, pieces in enumerate(frames):
            for piece, prob in pieces.items():
                probs[0, frame, tokenizer.piece_to_id(piece)] = prob
        log_probs = (probs / probs.sum(-1, keepdim=True)).log()
        return Recognition(log_probs, torch.tensor([len(frames)]), None, None)

    SPACE = {"▁": 1.0}
    # BAD is likelier than DAD, and both begin with a letter in doubt.
    DOUBT = (SPACE, {"B": 0.6, "D": 0.4}, {"A": 1.0}, {"D": 1.0})

    def test_readings_are_sorted_and_scored(self, lm_folder):
        tokenizer = lm_folder[2]
        search = CTCSearcher(nbest=2)
        search.prepare(tokenizer)
        recognition = self.recognition(tokenizer, *self.DOUBT)
        first, second = search.hypotheses(recognition, tokenizer)[0]
        assert (first.text, second.text) == ("BAD", "DAD")
        # Only the letter in doubt tells them apart.
        ratio = torch.tensor(0.6 / 0.4).log().item()
        assert first.score - second.score == pytest.approx(ratio, abs=1e-3)
        assert tokenizer.decode_ids(list(second.tokens)) == "DAD"
        assert GreedySearcher().hypotheses(recognition, tokenizer)[0][0].text == "BAD"

    def test_hot_words_win_where_the_model_doubts(self, lm_folder):
        tokenizer = lm_folder[2]
        recognition = self.recognition(tokenizer, *self.DOUBT)
        for hotwords, text in (((), "BAD"), (["dad"], "DAD"), (["ACE"], "BAD")):
            search = CTCSearcher(hotwords=hotwords)
            search.prepare(tokenizer)
            assert search.texts(recognition, tokenizer) == [text]

    def test_ngrams_in_another_letter_case_count_as_well(self, lm_folder, tmp_path):
        tokenizer = lm_folder[2]
        recognition = self.recognition(tokenizer, *self.DOUBT)
        for name, text in (("upper", "DAD ACE"), ("lower", "dad ace")):
            arpa = train_arpa([text], tmp_path / f"{name}.arpa", 1)
            search = CTCSearcher(arpa=arpa)
            search.prepare(tokenizer)
            assert search.texts(recognition, tokenizer) == ["DAD"]

    def test_a_kenlm_model_in_another_letter_case_is_refused(self, lm_folder):
        # What is asked of KenLM's model is which words it holds.
        for words in ({"A", "<s>", "</s>"}, {"A", "a"}, {"hello"}):
            _require_own_case(words, lm_folder[2], "lm.bin")
        with pytest.raises(ValueError, match="lm.bin is in another letter case"):
            _require_own_case({"a", "<s>", "</s>"}, lm_folder[2], "lm.bin")

    def test_hot_phrases_count_whole_or_not_at_all(self, lm_folder):
        tokenizer = lm_folder[2]
        search = CTCSearcher(hotwords=["DAD ACE"], hotword_weight=2.0)
        search.prepare(tokenizer)
        matched = search.search._letters_matched
        assert matched("DAD ACE BAD DAD ACE", None) == 12
        assert matched("BAD DAD", None) == 0
        assert matched("BAD DAD", "") == 3
        # What has begun counts whole, and no more where it goes on otherwise.
        assert matched("BAD DAD", "A") == 6
        assert matched("BAD DAD", "AB") == 0
        assert matched("BAD", "DA") == 3
        assert matched("DAD ACE", "D") == 9
        recognition = self.recognition(tokenizer, *self.DOUBT)
        # DAD alone is only the beginning of the phrase: it wins nothing.
        assert search.texts(recognition, tokenizer) == ["BAD"]

    # The model is sure, but for a letter of which it hears very little.
    SURE = (SPACE, {"B": 1.0, "D": 3e-4}, {"A": 1.0}, {"D": 1.0})

    def test_there_are_as_many_readings_as_wanted(self, lm_folder):
        """However sure the model is, and with the same best reading."""
        tokenizer = lm_folder[2]
        recognition = self.recognition(tokenizer, *self.SURE)
        surer = recognition._replace(ctc=(4 * recognition.ctc).log_softmax(-1))
        for frames in (recognition, surer):
            search = CTCSearcher(nbest=5)
            search.prepare(tokenizer)
            (found,) = search.hypotheses(frames, tokenizer)
            assert len({hypothesis.text for hypothesis in found}) == 5
            assert found[0].text == "BAD"
            # The next utterance is searched as if it were the first.
            assert search.hypotheses(frames, tokenizer) == [found]

    def test_a_hot_word_is_found_where_the_model_hears_little(self, lm_folder):
        tokenizer = lm_folder[2]
        recognition = self.recognition(tokenizer, *self.SURE)
        for hotwords, text in (((), "BAD"), (["DAD"], "DAD"), (["ACE"], "BAD")):
            search = CTCSearcher(hotwords=hotwords, hotword_weight=3.0)
            search.prepare(tokenizer)
            assert search.texts(recognition, tokenizer) == [text]

    def test_long_hot_words_count_no_more_than_six_letters(self, lm_folder):
        search = CTCSearcher(hotwords=["ABBACEDE", "A"])
        search.prepare(lm_folder[2])
        assert search.search._letters_matched("A ABBACEDE", None) == 7

    def test_a_hot_word_may_be_unknown_to_the_ngrams(self, lm_folder, tmp_path):
        tokenizer = lm_folder[2]
        arpa = train_arpa(["BAD BAD", "BAD"], tmp_path / "lm.arpa")
        recognition = self.recognition(tokenizer, *self.DOUBT)
        for hotwords, text in (((), "BAD"), (["DAD"], "DAD"), (["ACE"], "BAD")):
            search = CTCSearcher(arpa=arpa, hotwords=hotwords)
            search.prepare(tokenizer)
            assert search.texts(recognition, tokenizer) == [text]
        known = CTCSearcher(arpa=arpa, hotwords=["BAD"], hotword_weight=0.0)
        plain = CTCSearcher(arpa=arpa)
        scores = []
        for search in (known, plain):
            search.prepare(tokenizer)
            scores.append(search.hypotheses(recognition, tokenizer)[0][0].score)
        assert scores[0] == pytest.approx(scores[1], abs=1e-3)

    def test_a_language_model_rescores(self, lm_folder):
        folder, lm, tokenizer = lm_folder
        recognition = self.recognition(tokenizer, *self.DOUBT)
        plain = CTCSearcher(nbest=2)
        weighted = CTCSearcher(nbest=2, lm_folder=folder, rescore_weight=0.7)
        for search in (plain, weighted):
            search.prepare(tokenizer)
        before = plain.hypotheses(recognition, tokenizer)[0]
        after = weighted.hypotheses(recognition, tokenizer)[0]
        assert after[0].score >= after[1].score
        scores = {hypothesis.text: hypothesis.score for hypothesis in after}
        for hypothesis in before:
            tokens = torch.tensor([[1, *hypothesis.tokens, 2]])
            logits = lm(tokens[:, :-1])[0]
            logits[:, 1] = -math.inf  # the begin never follows
            log_probs = logits.log_softmax(-1)
            total = log_probs[range(len(log_probs)), tokens[0, 1:]].sum().item()
            expected = hypothesis.score + 0.7 * total
            assert scores[hypothesis.text] == pytest.approx(expected, abs=1e-4)

    def test_batch_order_changes_nothing(self, lm_folder):
        tokenizer = lm_folder[2]
        search = CTCSearcher(beam_size=5, nbest=2)
        search.prepare(tokenizer)
        ctc = torch.randn(3, 37, tokenizer.vocab_size()).log_softmax(-1)
        lengths = torch.tensor([37, 29, 11])
        together = search.hypotheses(Recognition(ctc, lengths, None, None), tokenizer)
        for i, length in enumerate(lengths):
            one = Recognition(ctc[i : i + 1, :length], lengths[i : i + 1], None, None)
            assert search.hypotheses(one, tokenizer)[0] == together[i]

    @pytest.mark.parametrize(
        "options,message",
        [
            ({"nbest": 0}, "nbest must be from 1"),
            ({"nbest": 9, "beam_size": 8}, "beam_size = 8"),
            ({"lm_weight": float("nan")}, "lm_weight must be >= 0"),
            ({"hotword_weight": -1}, "hotword_weight must be >= 0"),
            ({"rescore_weight": -1}, "rescore_weight must be >= 0"),
            ({"arpa": "no.arpa"}, "no such n-gram model"),
            ({"lm_folder": "/no/folder"}, "no such model folder"),
        ],
    )
    def test_impossible_settings_are_refused(self, options, message):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            CTCSearcher(**options)

    def test_hot_words_that_cannot_be_written_are_named(self, lm_folder):
        for hotword in ("ZOO", "  "):
            with pytest.raises(ValueError, match=f"hot word '{hotword}'"):
                CTCSearcher(hotwords=[hotword]).prepare(lm_folder[2])
