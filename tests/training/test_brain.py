"""The losses of a batch."""

import copy
import functools
from types import SimpleNamespace

import pytest
import speechbrain as sb
import torch
from speechbrain.augment.augmenter import Augmenter
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.nnet.losses import ctc_loss, nll_loss
from speechbrain.utils.checkpoints import Checkpointer

from hyperconformer.training.augment import SpeedPerturb, Telephone
from hyperconformer.training.brain import PADDED_FEATURES, ASRBrain, consistency_loss
from hyperconformer.transcribe.offline import ASR
from tests.goldens import relative_error


def views():
    torch.manual_seed(3)
    return torch.randn(4, 6, 5, dtype=torch.float64, requires_grad=True)


def test_equals_its_definition_and_ignores_padding():
    logits, lengths = views(), torch.tensor([6, 4, 6, 4])
    counts = torch.tensor([2.0, 1.0, 2.0, 1.0])
    log_probs = logits.log_softmax(-1)
    expected = 0.0
    for row in range(4):
        mine, other = log_probs[row], log_probs[(row + 2) % 4]
        for frame in range(lengths[row]):
            kl = (other[frame].exp() * (other[frame] - mine[frame])).sum()
            expected += kl / counts[row] / 4
    got = consistency_loss(log_probs, lengths, counts)
    assert torch.allclose(got, expected, atol=1e-12)
    got.backward()
    assert (logits.grad[1, 4:] == 0).all() and (logits.grad[0] != 0).any()


def test_each_view_is_drawn_to_the_other_held_fixed():
    logits = views()
    lengths, counts = torch.full((4,), 6), torch.ones(4)
    target = logits.detach().roll(2, 0).log_softmax(-1)
    consistency_loss(logits.log_softmax(-1), lengths, counts).backward()
    alone = logits.detach().clone().requires_grad_()
    fixed = (target.exp() * (target - alone.log_softmax(-1))).sum() / 4
    fixed.backward()
    assert torch.allclose(logits.grad, alone.grad, atol=1e-12)


@pytest.fixture(scope="module")
def make_brain(build_model_folder, tmp_path_factory):
    """Brains of one tiny recogniser with a decoder; it drops nothing."""
    asr = ASR.from_hparams(build_model_folder(decoder_layers=1))

    def make(precision, dtype=torch.float32):
        recognizer = copy.deepcopy(asr.recognizer).eval().to(dtype)

        def extractor(wavs, wav_lens):
            features, lengths = asr.extractor(wavs, wav_lens)
            return features.to(dtype), lengths

        return ASRBrain(
            asr.tokenizer,
            dict.fromkeys(("batch_sampler", "generator", "collate_fn")),
            modules={"recognizer": recognizer},
            hparams={
                "extractor": extractor,
                "recognizer": recognizer,
                "wav_augment": None,
                "feature_augment": lambda features, lengths: (features, lengths),
                "dynchunktrain_config_sampler": SimpleNamespace(chunkwise_prob=0),
                "ctc_cost": functools.partial(ctc_loss, blank_index=0),
                "seq_cost": nll_loss,
                "ctc_weight": 0.5,
                "consistency_weight": 0.5,
                "phone_ctc": None,
                "tensorboard": False,
            },
            run_opts={"device": "cpu", "precision": precision},
            checkpointer=Checkpointer(tmp_path_factory.mktemp("checkpoints")),
        )

    return make


def batch_of(lengths):
    generator = torch.Generator().manual_seed(4)
    return PaddedBatch(
        [
            {
                "sig": torch.randn(length, generator=generator),
                "tokens": torch.tensor([3, 4, 5]),
                "tokens_bos": torch.tensor([1, 3, 4, 5]),
                "tokens_eos": torch.tensor([3, 4, 5, 2]),
            }
            for length in lengths
        ]
    )


def train_on(brain, batch):
    """Frames of the encoder, loss and gradients, without a cast to less precision."""
    brain.augmenting = True
    predictions = brain.compute_forward(batch, sb.Stage.TRAIN)
    loss = brain.compute_objectives(predictions, batch, sb.Stage.TRAIN)
    loss.backward()
    gradients = [weight.grad for weight in brain.modules.parameters()]
    return predictions.ctc.shape[1], [loss.detach(), *gradients]


def test_padding_for_reduced_precision_changes_neither_loss_nor_gradients(make_brain):
    # 101, 63 and 87 features; each has 26, 16 and 22 frames.
    lengths = [16000, 9920, 13760]
    _, exact = train_on(make_brain("fp32", torch.float64), batch_of(lengths))
    frames, plain = train_on(make_brain("fp32"), batch_of(lengths))
    padded_frames, padded = train_on(make_brain("bf16"), batch_of(lengths))
    assert (frames, padded_frames) == (26, 2 * PADDED_FEATURES // 4)
    for got, peer, truth in zip(padded, plain, exact, strict=True):
        # The same sums in another order.
        assert relative_error(got, truth) <= 2 * relative_error(peer, truth) + 1e-6


def test_evaluation_is_not_padded(make_brain):
    predictions = make_brain("bf16").compute_forward(batch_of([16000]), sb.Stage.VALID)
    assert predictions.ctc.shape[1] == 26


def test_audio_is_augmented_in_full_precision(make_brain):
    brain, heard = make_brain("bf16"), []
    augment = Augmenter(
        min_augmentations=2, augmentations=[SpeedPerturb([90]), Telephone(1.0, 16000)]
    )

    def listen(wavs, wav_lens):
        heard.append(augment(wavs, wav_lens)[0])
        return heard[-1], wav_lens

    brain.hparams.wav_augment = listen
    brain.augmenting = True
    batch = batch_of([16000])
    with torch.autocast("cpu", torch.bfloat16):
        brain.compute_forward(batch, sb.Stage.TRAIN)
    assert torch.equal(heard[0], augment(batch.sig[0], torch.ones(1))[0])
