"""CTC-CRF: CTC whose label sequences compete with all others.

"CRF-based Single-stage Acoustic Modeling with CTC Topology", H. Xiang and Z. Ou, ICASSP
2019 (doi:10.1109/ICASSP.2019.8682256). The loss of an utterance is ``log P(all
sequences, audio) - log P(its labels, audio)``: each frame's log-probabilities are
potentials, and a trigram model of the labels weighs the sequences. So the model learns
what a language model cannot tell. This is lattice-free MMI (Povey et al., Interspeech
2016) on CTC's topology.
"""

import torch

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
        return _forward(log_probs, lengths, trigrams.to(log_probs))


def _forward(log_probs, lengths, trigrams):
    batch, frames, size = log_probs.shape
    end = trigrams[..., BOUNDARY].T.unsqueeze(1)  # (last, 1, before)
    # (last, before, next): a label follows itself only after a blank.
    after_blank = trigrams.transpose(0, 1).clone()
    after_blank[..., BOUNDARY] = 0.0
    repeats = torch.eye(size, dtype=torch.bool, device=log_probs.device).unsqueeze(1)
    after_label = after_blank.masked_fill(repeats, 0.0)
    transitions = torch.cat([after_blank, after_label], dim=1)

    probabilities = log_probs.exp()
    blank = log_probs.new_zeros(size, batch, size)  # (last, B, before)
    blank[BOUNDARY, :, BOUNDARY] = 1.0
    label = torch.zeros_like(blank)
    total = log_probs.new_zeros(batch)
    going = lengths.unsqueeze(0) > torch.arange(frames, device=lengths.device)[:, None]
    for frame, goes in zip(probabilities.unbind(1), going):
        entered = torch.bmm(torch.cat([blank, label], dim=-1), transitions)
        new_label = (entered.permute(2, 1, 0) + label) * frame.T.unsqueeze(-1)
        new_blank = (blank + label) * frame[:, BLANK_INDEX, None]
        scale = (new_label + new_blank).sum((0, 2))
        total = total + torch.where(goes, scale.log(), 0.0)
        goes, scale = goes[:, None], scale[:, None]
        label = torch.where(goes, new_label / scale, label)
        blank = torch.where(goes, new_blank / scale, blank)
    return total + ((blank + label) * end).sum((0, 2)).log()
