"""The gated delta rule: a memory of keys and values that decays and corrects itself.

Gated Delta Networks, https://arxiv.org/abs/2412.06464, equation 10, for one head with a
memory S (d, e), keys k_t (d) and values v_t (e), a decay a_t from 0 to 1 and a writing
strength b_t:

    S_t = a_t (I - b_t k_t k_t') S_{t-1} + b_t k_t v_t',    o_t = S_t' q_t / sqrt(d).

The memory is written transposed here. What it holds under k_t is replaced, in the part
b_t, by v_t.
"""

from hyperconformer.ops.gated_delta_rule import torch_path


def gated_delta_rule(q, k, v, log_decay, strength, *, memory=None):
    """Read and write a memory frame by frame; O(T) in time and memory.

    Arguments
    ---------
    q, k : torch.Tensor
        (B, H, T, d) queries and keys; the keys have a norm of at most 1.
    v : torch.Tensor
        (B, H, T, e) values.
    log_decay : torch.Tensor
        (B, H, T) log a_t, at most 0.
    strength : torch.Tensor
        (B, H, T) b_t, from 0 to 2. A frame with strength and log decay 0 is no time.
    memory : torch.Tensor, optional
        (B, H, d, e) what the frames before have left; None = zeros.

    Returns
    -------
    out : torch.Tensor
        (B, H, T, e), float32 or float64.
    memory : torch.Tensor
        (B, H, d, e) after the last frame, of the same type.

    Raises
    ------
    ValueError
        If shapes do not fit, or it is exported for any number of frames.

    Example
    -------
    >>> import torch
    >>> k = torch.eye(2).expand(1, 1, 2, 2)
    >>> ones, zeros = torch.ones(1, 1, 2), torch.zeros(1, 1, 2)
    >>> out, memory = gated_delta_rule(k, k, 3 * k, zeros, ones)
    >>> memory[0, 0].tolist()
    [[3.0, 0.0], [0.0, 3.0]]
    """
    fits = q.dim() == 4 and k.shape == q.shape and v.shape[:-1] == q.shape[:-1]
    fits = fits and log_decay.shape == strength.shape == q.shape[:-1]
    if memory is not None:
        fits = fits and memory.shape == (*q.shape[:2], q.shape[-1], v.shape[-1])
    if not fits:
        shapes = [
            None if x is None else tuple(x.shape)
            for x in (q, k, v, log_decay, strength, memory)
        ]
        raise ValueError(
            "q, k, v, log_decay, strength and memory must be (B, H, T, d), (B, H, T, "
            "d), (B, H, T, e), (B, H, T), (B, H, T) and (B, H, d, e), got "
            f"{', '.join(map(str, shapes))}"
        )
    return torch_path.gated_delta_rule(q, k, v, log_decay, strength, memory=memory)
