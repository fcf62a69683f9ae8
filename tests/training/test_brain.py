"""The consistency of two views."""

import torch

from hyperconformer.training.brain import consistency_loss


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
