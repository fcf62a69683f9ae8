"""HyperGLU in its dense form: every score in memory, every published option.

This is the definition that the efficient path is tested against, and the only
form of the two length-dependent settings (identity layout, no causal mask).
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F


class LowRankMix(NamedTuple):
    """One residual low-rank mixing along the slots of a row of scores.

    ``y = (x U * control) Vt + x * (shortcut + d)`` for a row ``x`` of L slots.

    Arguments
    ---------
    U : torch.Tensor
        (H, L, r) float, from slots to rank.
    Vt : torch.Tensor
        (H, r, L) float, from rank to slots.
    d : torch.Tensor or None
        (H, L) float, the diagonal term; None = there is none.
    control : torch.Tensor
        (B, H, T, r) float, the factors that each row chooses for itself.
    shortcut : bool
        Whether the row itself is added.
    masked : bool
        Whether slots that hold no visible key are set to 0 afterwards. False
        is length dependent, and in causal mode shows the future: only
        :func:`hyperglu_dense` has it, to demonstrate that.
    """

    U: torch.Tensor
    Vt: torch.Tensor
    d: torch.Tensor | None
    control: torch.Tensor
    shortcut: bool = True
    masked: bool = True

    def gain(self):
        """(H, L) what each slot is multiplied by: ``shortcut + d``."""
        if self.d is None:
            return self.U.new_full(self.U.shape[:2], float(self.shortcut))
        return self.d + float(self.shortcut)


def hyperglu_dense(
    q,
    k,
    v,
    *,
    kind="glu",
    norm="out_scale",
    mix1=None,
    mix2=None,
    block_size,
    norm_eps=1e-12,
    causal=True,
    layout="offset",
):
    """HyperGLU / HyperMLP mixing with all (T, T) scores in memory.

    Row i of the scores is laid out in slots. In ``offset`` layout a slot is a
    lag ``i - j`` and the last slot is lag 0; in ``identity`` layout slot j is
    key j. The low-rank mixings act on slots and read the last columns of their
    parameters, so the parameters belong to lags in offset layout, and to
    positions counted from the end of the sequence in identity layout.

    Arguments
    ---------
    q : torch.Tensor
        (B, Hq, T, d) float; Hq = 2H for "glu" (the first H score sets are
        rectified, the last H gate them through softplus), H for "relu".
    k : torch.Tensor
        (B, Hq, T, d) float.
    v : torch.Tensor
        (B, H, T, d_v) float.
    kind : str
        "glu" (HyperGLU) or "relu" (HyperMLP).
    norm : str
        "out_scale", "l2" or "none": the division by the norm of a row of
        scores after ``mix1``, on the output, before the rectifier, or nowhere.
    mix1 : LowRankMix, optional
        The mixing before the nonlinearity, Hq heads.
    mix2 : LowRankMix, optional
        The mixing after it, H heads.
    block_size : int
        Slots L of the parameters. Causal offset layout sees lags 0 to L - 1 of
        a sequence of any length; the other settings need T <= L.
    norm_eps : float
        The least norm that is divided by.
    causal : bool
        Whether scores of keys j > i are set to 0 in identity layout, and slots
        without a visible key to 0 after each masked mixing.
    layout : str
        "offset" or "identity".

    Returns
    -------
    torch.Tensor
        (B, H, T, d_v) float.

    Raises
    ------
    ValueError
        If T > L in a length-dependent setting.

    Example
    -------
    >>> q, k, v = torch.randn(3, 1, 2, 5, 4).unbind()
    >>> hyperglu_dense(q, k, v, kind="relu", block_size=3).shape
    torch.Size([1, 2, 5, 4])
    """
    frames = q.shape[2]
    sliding = causal and layout == "offset"
    if frames > block_size and not sliding:
        raise ValueError(
            f"only causal offset layout takes more frames than block_size = "
            f"{block_size}; got T = {frames} with layout = {layout!r}, "
            f"causal = {causal}"
        )
    key_of_slot = slot_keys(frames, min(frames, block_size), layout, q.device)
    row = torch.arange(frames, device=q.device)[:, None]
    readable = key_of_slot >= 0
    if layout == "identity" and causal:
        readable = readable & (key_of_slot <= row)
    hidden = ~readable if causal else None

    scores = q @ k.transpose(-1, -2)
    index = key_of_slot.clamp(min=0).expand(*scores.shape[:2], -1, -1)
    x = scores.gather(-1, index).masked_fill(~readable, 0.0)
    x = low_rank_mix(x, mix1, hidden)
    heads = v.shape[1]
    rectified = x[:, :heads]
    inverse_norm = 1 / torch.linalg.vector_norm(
        rectified, dim=-1, keepdim=True
    ).clamp_min(norm_eps)
    if norm == "l2":
        rectified = rectified * inverse_norm
    a = rectified.relu()
    if kind == "glu":
        a = a * F.softplus(x[:, heads:])
    a = low_rank_mix(a, mix2, hidden)

    # Slots before the first frame hold no value: they are dropped here.
    a = a.masked_fill(key_of_slot < 0, 0.0)
    weights = a.new_zeros(*a.shape[:2], frames, frames)
    y = weights.scatter_add(-1, index[:, :heads], a) @ v
    return y * inverse_norm if norm == "out_scale" else y


def slot_keys(frames, slots, layout, device=None):
    """Which key stands in each slot of each row.

    Arguments
    ---------
    frames : int
        Rows T.
    slots : int
        Slots in a row.
    layout : str
        "offset" or "identity".
    device : torch.device, optional
        Where to make it.

    Returns
    -------
    torch.Tensor
        (T, slots) int64; negative where the key would precede the sequence.

    Example
    -------
    >>> slot_keys(3, 2, "offset").tolist()
    [[-1, 0], [0, 1], [1, 2]]
    """
    slot = torch.arange(slots, device=device).expand(frames, slots)
    if layout == "identity":
        return slot
    lag = slots - 1 - slot
    return torch.arange(frames, device=device)[:, None] - lag


def low_rank_mix(x, mix, hidden):
    """Apply a :class:`LowRankMix` to rows of slots.

    Arguments
    ---------
    x : torch.Tensor
        (B, H, T, slots) float.
    mix : LowRankMix or None
        None leaves x as it is.
    hidden : torch.Tensor or None
        (T, slots) bool, True where a masked mixing leaves 0.

    Returns
    -------
    torch.Tensor
        (B, H, T, slots) float.
    """
    if mix is None:
        return x
    slots = x.shape[-1]
    z = (x @ mix.U[:, -slots:]) * mix.control
    y = x * mix.gain()[:, None, -slots:] + z @ mix.Vt[..., -slots:]
    if hidden is None or not mix.masked:
        return y
    return y.masked_fill(hidden, 0.0)
