"""CTC-CRF: CTC whose label sequences compete with all others.

"CRF-based Single-stage Acoustic Modeling with CTC Topology", H. Xiang and Z. Ou, ICASSP
2019 (doi:10.1109/ICASSP.2019.8682256). The loss of an utterance is ``log P(all
sequences, audio) - log P(its labels, audio)``: each frame's log-probabilities are
potentials, and a trigram model of the labels weighs the sequences. So the model learns
what a language model cannot tell. This is lattice-free MMI (Povey et al., Interspeech
2016) on CTC's topology.
"""

import torch

from hyperconformer.core.masks import lengths_to_padding_mask
from hyperconformer.core.tokens import BLANK_INDEX

# The history before the first label, and the end as a label: the number of no label.
BOUNDARY = BLANK_INDEX


def estimate_trigrams(sequences, num_labels):
    """Estimate a trigram model with Witten-Bell smoothing.

    Arguments
    ---------
    sequences : iterable of list of int
        Label sequences; labels are 1 to ``num_labels``.
    num_labels : int
        Number N of labels.

    Returns
    -------
    torch.Tensor
        (N + 1, N + 1, N + 1) float32: the probability of the last label after the two
        before it. Number 0 is the start in a history, and the end as a last label.
    """
    size = num_labels + 1
    counts = torch.zeros(size, size, size, dtype=torch.float64)
    for labels in sequences:
        padded = torch.tensor([BOUNDARY, BOUNDARY, *labels, BOUNDARY])
        where = tuple(padded[start : len(padded) - 2 + start] for start in range(3))
        counts.index_put_(where, torch.ones(len(where[0])).double(), accumulate=True)
    probabilities = torch.full((size,), 1 / size, dtype=torch.float64)
    for order in (counts.sum((0, 1)), counts.sum(0), counts):
        kinds = (order > 0).sum(-1, keepdim=True)
        total = order.sum(-1, keepdim=True) + kinds
        probabilities = torch.where(
            total > 0,
            (order + kinds * probabilities) / total.clamp(min=1),
            probabilities,
        )
    return probabilities.float()


def score_all_sequences(log_probs, lengths, trigrams):
    """Sum the probability of all label sequences, by the forward algorithm.

    A state is the last label, the one before it, and whether the last frame was a
    blank. Sums are scaled at each frame. The cost is (B N^3) per frame.

    Arguments
    ---------
    log_probs : torch.Tensor
        (B, T, N + 1) log-probabilities of blank and labels.
    lengths : torch.Tensor
        (B,) int64 frames of each utterance.
    trigrams : torch.Tensor
        (N + 1, N + 1, N + 1) from :func:`estimate_trigrams`.

    Returns
    -------
    torch.Tensor
        (B,) logarithms of the sums.
    """
    # Autocast would round the products of states and transitions to 8 bits.
    with torch.autocast(log_probs.device.type, enabled=False):
        return _AllSequences.apply(log_probs, lengths, trigrams.to(log_probs))


class _AllSequences(torch.autograd.Function):
    """The forward-backward algorithm; autograd took 2.5 times as long.

    A state is (last label, utterance, where the path is): of N + 1 labels, the first
    half of its last dimension holds paths whose last frame was a blank, by the label
    before the last, the second half those whose last frame was the last label.
    """

    @staticmethod
    def forward(ctx, log_probs, lengths, trigrams):
        batch, frames, size = log_probs.shape
        # (last, before, next): a label follows itself only after a blank.
        after_blank = trigrams.transpose(0, 1).clone()
        after_blank[..., BOUNDARY] = 0.0
        repeats = torch.eye(size, dtype=torch.bool, device=log_probs.device)
        after_label = after_blank.masked_fill(repeats.unsqueeze(1), 0.0)
        transitions = torch.cat([after_blank, after_label], dim=1)
        end = trigrams[..., BOUNDARY].T.repeat(1, 2).unsqueeze(1)

        padding = lengths_to_padding_mask(lengths, frames)
        emitted = log_probs.masked_fill(padding.unsqueeze(-1), 0.0).exp()
        labels = emitted.permute(1, 2, 0).unsqueeze(-1).contiguous()  # (T, N + 1, B, 1)
        blanks = emitted[..., BLANK_INDEX].T.unsqueeze(-1).contiguous()
        states = log_probs.new_zeros(frames + 1, size, batch, 2 * size)
        states[0, BOUNDARY, :, BOUNDARY] = 1.0
        scales = log_probs.new_empty(frames, batch)
        for frame in range(frames):
            old, new = states[frame], states[frame + 1]
            entered = torch.bmm(old, transitions).permute(2, 1, 0)
            old_blank, old_label = old[..., :size], old[..., size:]
            torch.add(old_blank, old_label, out=new[..., :size])
            torch.add(entered, old_label, out=new[..., size:])
            new[..., :size] *= blanks[frame]
            new[..., size:] *= labels[frame]
            torch.sum(new, (0, 2), out=scales[frame])
            new /= scales[frame].unsqueeze(-1)
        last = states[lengths, :, torch.arange(batch, device=lengths.device)]
        endings = (last * end.transpose(0, 1)).sum((1, 2))
        end = end / endings.unsqueeze(-1)
        ctx.save_for_backward(lengths, transitions, end, labels, blanks, states, scales)
        return scales.log().masked_fill(padding.T, 0.0).sum(0) + endings.log()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        lengths, transitions, end, labels, blanks, states, scales = ctx.saved_tensors
        frames, size, batch, _ = labels.shape
        # How much each state's paths grow until the end, over all paths' sum.
        growth = torch.zeros_like(states[0])
        transitions = transitions.transpose(1, 2).contiguous()
        shares = labels.new_zeros(frames, size, batch)
        ends = set(lengths.tolist())
        for frame in range(frames, 0, -1):
            if frame in ends:
                ending = (lengths == frame).unsqueeze(-1)
                growth = torch.where(ending, end, growth)
            share = (states[frame] * growth).view(size, batch, 2, size).sum(-1)
            shares[frame - 1] = share[..., 1]
            shares[frame - 1, BLANK_INDEX] += share[..., 0].sum(0)
            growth /= scales[frame - 1].unsqueeze(-1)
            blank = growth[..., :size] * blanks[frame - 1]
            label = growth[..., size:] * labels[frame - 1]
            # bmm on a CPU takes ten times as long for a matrix of another layout.
            growth = torch.bmm(label.permute(2, 1, 0).contiguous(), transitions)
            growth[..., :size] += blank
            growth[..., size:] += label.add_(blank)
        return grad[:, None, None] * shares.permute(2, 0, 1), None, None
