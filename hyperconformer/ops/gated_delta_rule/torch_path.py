"""The gated delta rule in matrix products, a chunk of frames at once.

Within a chunk that finds the memory S, let u_t = b_t (v_t - a_t S_{t-1}' k_t) be what
frame t adds under its key, and g_t the sum of the log decays up to t. Then

    S_t = e^{g_t} S + sum_{j <= t} e^{g_t - g_j} k_j u_j',
    u_t + b_t sum_{j < t} e^{g_t - g_j} (k_t' k_j) u_j = b_t (v_t - e^{g_t} S' k_t):

a triangular system (I + N) U = B (V - E K S), whose inverse does not depend on S and is
made for all chunks at once. Every exponent is at most 0. This is the chunked form of
https://arxiv.org/abs/2412.06464, section 3.3.
"""

import torch
import torch.nn.functional as F

from hyperconformer.core.recording import is_exported

_CHUNK_FRAMES = 32
"""Frames of a chunk: a power of two, of the size of a head."""


def gated_delta_rule(q, k, v, log_decay, strength, *, memory=None):
    """See :func:`hyperconformer.ops.gated_delta_rule.gated_delta_rule`."""
    frames, width = q.shape[2:]
    if is_exported() and not isinstance(frames, int):
        # The loop below would be recorded as long as it is for the example.
        raise ValueError(
            "the gated delta rule can only be exported for a fixed number of frames"
        )
    dtype = torch.promote_types(v.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        q, k, v, log_decay, strength = (
            _in_chunks(x.to(dtype), frames) for x in (q, k, v, log_decay, strength)
        )
        if memory is None:
            memory = v.new_zeros(*v.shape[:2], width, v.shape[-1])
        memory = memory.to(dtype)
        total = log_decay.cumsum(-1)
        since = total.unsqueeze(-1) - total.unsqueeze(-2)
        later = torch.ones_like(since[0, 0, 0], dtype=torch.bool).triu(1)
        # Hidden before the exponential: what is not seen could overflow.
        decay = since.masked_fill(later, float("-inf")).exp()

        keys = k * strength.unsqueeze(-1)
        itself = torch.eye(since.shape[-1], dtype=torch.bool, device=k.device)
        system = (keys @ k.mT * decay).masked_fill(itself, 0.0)
        inverse = _unit_triangular_inverse(system)
        written = inverse @ (v * strength.unsqueeze(-1))
        found = inverse @ (keys * total.exp().unsqueeze(-1))
        within = q @ k.mT * decay * width**-0.5
        asked = q * (total.exp() * width**-0.5).unsqueeze(-1)
        left = k * (total[..., -1:] - total).exp().unsqueeze(-1)
        kept = total[..., -1, None, None].exp()

        out = []
        for chunk in range(q.shape[2]):
            added = written[:, :, chunk] - found[:, :, chunk] @ memory
            out.append(asked[:, :, chunk] @ memory + within[:, :, chunk] @ added)
            memory = kept[:, :, chunk] * memory + left[:, :, chunk].mT @ added
        return torch.cat(out, dim=2)[:, :, :frames], memory


def _in_chunks(x, frames):
    """(B, H, T, ...) as (B, H, chunks, size, ...), with frames that are no time."""
    size = min(_CHUNK_FRAMES, 1 << (frames - 1).bit_length())
    padding = [0, 0] * (x.dim() - 3) + [0, -frames % size]
    return F.pad(x, padding).unflatten(2, (-1, size))


def _unit_triangular_inverse(below):
    """The inverse of I + N for N (..., C, C) strictly lower triangular, C = 2^n.

    The blocks [[A, 0], [N, B]] have the inverse [[A', 0], [-B' N A', B']] of the
    inverses A', B': from blocks of one row up to the whole. As exact as substitution,
    where powers of N would overflow; unlike torch.linalg.solve_triangular it has an
    ONNX form.
    """
    size, whole = 1, below.shape[-1]
    inverse = below.new_ones(*below.shape[:-1], 1, 1)
    while size < whole:
        pairs = below.unflatten(-1, (-1, 2 * size)).unflatten(-3, (-1, 2 * size))
        corner = pairs.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)
        first, second = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        corner = -second @ corner[..., size:, :size] @ first
        rows = [F.pad(first, (0, size)), torch.cat([corner, second], dim=-1)]
        inverse = torch.cat(rows, dim=-2)
        size *= 2
    return inverse.squeeze(-3)
