"""The transducer head: its loss, its search, and both in a stream."""

import types

import pytest
import torch
from streaming_model import streaming_config

from hyperconformer.core.tokens import NO_TEXT
from hyperconformer.model.chunks import chunk_config
from hyperconformer.model.recognizer import Recognition, Recognizer
from hyperconformer.model.transducer import Transducer, transducer_loss
from hyperconformer.search.transducer import TransducerSearch, TransducerSearcher
from hyperconformer.transcribe.streaming import StreamingASR, StreamingModel

VOCAB = 12


class Tokenizer:
    """A word of one letter for each token."""

    def id_to_piece(self, index):
        return "\u2581" + chr(ord("A") + index)

    def decode_ids(self, ids):
        return " ".join(chr(ord("A") + index) for index in ids)


def alignments(frames, tokens):
    """All paths: in each frame any number of tokens and then a blank."""
    if frames == 0:
        return [] if tokens else [[]]
    paths = []
    for said in range(len(tokens) + 1):
        step = [*tokens[:said], 0]
        paths += [step + rest for rest in alignments(frames - 1, tokens[said:])]
    return paths


@pytest.mark.parametrize("frames,tokens", [(1, []), (3, [2]), (3, [2, 2]), (4, [1, 3])])
def test_the_loss_is_the_sum_over_all_alignments(frames, tokens):
    logits = torch.randn(1, frames, len(tokens) + 1, 4, dtype=torch.float64)
    log_probs, total = logits.log_softmax(-1)[0], []
    for path in alignments(frames, tokens):
        t = u = score = 0
        for index in path:
            score = score + log_probs[t, u, index]
            t, u = (t + 1, u) if index == 0 else (t, u + 1)
        total.append(score)
    expected = -torch.stack(total).logsumexp(0).float()
    # Padding, of frames and of tokens, changes nothing.
    padded = torch.full((2, frames + 2, len(tokens) + 3, 4), 7.0)
    padded[0, :frames, : len(tokens) + 1] = logits[0]
    target = torch.tensor([tokens + [3, 3], [1] * (len(tokens) + 2)])
    lengths = torch.tensor([frames, frames + 1]), torch.tensor([len(tokens), 1])
    assert transducer_loss(padded, target, *lengths)[0] == pytest.approx(
        expected.item(), abs=1e-5
    )


def test_two_utterances_are_learnt_by_heart():
    torch.manual_seed(0)
    transducer = Transducer(d_model=8, vocab_size=6, width=16)
    encoded, tokens = torch.randn(2, 6, 8), torch.tensor([[3, 4, 4], [5, 3, 0]])
    frames, counts = torch.tensor([6, 5]), torch.tensor([3, 2])
    optimizer = torch.optim.Adam(transducer.parameters(), lr=0.02)
    for _ in range(80):
        optimizer.zero_grad()
        losses = transducer_loss(transducer(encoded, tokens), tokens, frames, counts)
        losses.sum().backward()
        optimizer.step()
    recognition = Recognition(torch.zeros(2, 6, 6), frames, encoded, None)
    recognizer = types.SimpleNamespace(transducer=transducer)
    found = TransducerSearcher(recognizer).hypotheses(recognition, Tokenizer())
    assert [best[0].tokens for best in found] == [(3, 4, 4), (5, 3)]


def model():
    """Untrained, and with a mind to speak."""
    torch.manual_seed(4)
    transducer = Transducer(d_model=16, vocab_size=VOCAB, width=8)
    with torch.no_grad():
        transducer.projection.weight.mul_(4)
        transducer.output.weight.mul_(4)
        transducer.output.bias[1:3] = -100.0  # begin and end are no text
    config = streaming_config(vocab_size=VOCAB)
    config["recognizer"].transducer = transducer
    return StreamingModel(config["extractor"], config["recognizer"], 160)


@torch.no_grad()
def test_streamed_equals_offline_however_the_samples_are_cut():
    stream, samples = model(), 0.1 * torch.randn(12000)
    recognition = stream.recognizer(
        *stream.extractor(samples[None]), None, chunk_config(160, None, 40)
    )
    search = TransducerSearcher(stream.recognizer)
    (text,) = search.texts(recognition, Tokenizer())
    assert len(set(text.split())) > 2
    asr = StreamingASR(stream, Tokenizer(), endpoint_s=60.0)
    for size in (12000, 777):
        (*_, last) = asr.partials(samples.split(size))
        assert last.text == text
    for word, after in zip(last.words, last.words[1:]):
        assert 0 <= word.start_s < word.end_s and word.start_s <= after.start_s
        assert 0 < word.confidence <= 1


def test_what_does_not_go_together_is_refused():
    plain = streaming_config(num_decoder_layers=1)["recognizer"]
    parts = plain.frontend, plain.transformer, 16, VOCAB
    with pytest.raises(ValueError, match="got both"):
        Recognizer(*parts, Transducer(16, VOCAB, 8))
    with pytest.raises(ValueError, match="needs a transducer"):
        TransducerSearcher(plain)


@torch.no_grad()
def test_a_search_that_skips_blanks_says_what_each_frame_says():
    """However the frames are cut: tokens, their frames, and the silence after them."""
    torch.manual_seed(3)
    transducer = Transducer(d_model=8, vocab_size=6, width=8)
    transducer.output.bias[0] += 0.4  # Blanks and tokens, several in some frames.
    frames = 4 * torch.randn(60, 8)
    memory, silence, expected = None, 0, []
    for number, frame in enumerate(frames):
        said, _, memory = transducer.decode(frame[None], memory)
        silence = 0 if said else silence + 1
        expected += [(token, number) for token in said if token not in NO_TEXT]
    assert 10 < len(expected) < 200
    for size in (1, 7, 60):
        search = TransducerSearch(Tokenizer(), transducer)
        for part in frames.split(size):
            search.advance(part)
        assert [(t.token, t.start) for t in search.tokens] == expected
        assert (search.frames, search.silence) == (60, silence)
        search.advance(frames[:0])
        assert search.frames == 60
