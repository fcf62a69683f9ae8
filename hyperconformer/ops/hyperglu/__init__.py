"""HyperGLU and HyperMLP (arXiv:2602.12601): attention as a dynamic two-layer MLP.

Row i of the scores, lag ``l = i - j`` from 0 to L - 1 (causal offset layout)::

    s_ij = q_i . k_j                                      no 1/sqrt
    mix1:  h_ir = sum_j s_ij U[l, r]
           s'_ij = s_ij (1 + d[l]) + sum_r h_ir c_ir V[r, l]
    glu:   a_ij = softplus(s2'_ij) relu(s1'_ij)           relu: a_ij = relu(s'_ij)
    mix2:  the same on a_ij, with its own U, V, d, c
    out_i = sum_j a'_ij v_j / |s1'_i|

Three paths compute the same: ``reference``, with all scores in memory; ``torch``, a
chunk of queries at a time; ``triton``, kernels for a GPU, a tile of scores at a time.
:mod:`hyperconformer.ops.backend` chooses.
"""

import torch

from hyperconformer.ops.backend import choose_backend
from hyperconformer.ops.hyperglu.reference import LowRankMix, hyperglu_dense
from hyperconformer.ops.hyperglu.torch_path import hyperglu_windowed

__all__ = ["LowRankMix", "hyperglu"]


def hyperglu(
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
    past_frames=None,
    chunk_frames=64,
    backend=None,
):
    """HyperGLU / HyperMLP mixing of values by rectified, remixed scores.

    Causal offset layout slides a window of ``block_size`` lags over a sequence
    of any length, in O(T * block_size) time and O(T) memory. Its parameters
    belong to lags, so it is shift invariant: it can be streamed. The other
    settings are length dependent, dense, and take T <= block_size.

    The arithmetic is float32 (float64 for float64 queries) whatever the inputs
    and autocast say: scores are unscaled, and sums run over whole rows. The kernels
    multiply half-precision inputs as TF32, and sum in float32.

    Arguments
    ---------
    q : torch.Tensor
        (B, Hq, T, d) float; Hq = 2H for "glu", H for "relu".
    k : torch.Tensor
        (B, Hq, P + T, d) float: keys of P earlier frames, then of the queries'.
    v : torch.Tensor
        (B, H, P + T, d_v) float.
    kind : str
        "glu" (HyperGLU) or "relu" (HyperMLP).
    norm : str
        "out_scale", "l2" (equal but for rounding) or "none".
    mix1, mix2 : LowRankMix, optional
        The mixings before and after the nonlinearity, of Hq and of H heads.
    block_size : int
        L: lags that a query sees, and slots of the mixings' parameters.
    norm_eps : float
        The least norm that is divided by.
    causal : bool
        Whether scores of the future are 0.
    layout : str
        "offset" (a slot is a lag) or "identity" (a slot is a key).
    past_frames : torch.Tensor, optional
        (B,) int64: frames of each stream before its first query. Where a stream
        is younger than P frames, the rest of its P keys and values must be 0;
        None means that all P are real.
    chunk_frames : int, optional
        Queries that the torch path handles at once; None = the dense form, all
        scores in memory.
    backend : str, optional
        "reference", "torch" or "triton", to force that path. None:
        ``HYPERCONFORMER_BACKEND`` where it is set, else "triton" on devices of
        compute capability 8.0 or 9.0 if the kernels take the arguments, and "torch"
        elsewhere, which is "reference" for what only the dense form does. The kernels
        take causal offset layout, heads of width 64 at most (128 in half precision),
        mixings of rank 16 at most, and no float64.

    Returns
    -------
    torch.Tensor
        (B, H, T, d_v), the dtype of v.

    Raises
    ------
    ValueError
        If options are unknown, shapes do not fit, a causal mixing is not
        masked, a length-dependent setting gets too many frames or a past, or the
        forced backend is unknown or cannot run.

    Example
    -------
    >>> q, k = torch.randn(2, 1, 4, 9, 8).unbind()
    >>> hyperglu(q, k, torch.randn(1, 2, 9, 8), block_size=5).shape
    torch.Size([1, 2, 9, 8])
    """
    _check_operands(q, k, v, kind, norm, layout)
    if causal:
        _check_masked(mix1, mix2)
    if chunk_frames is not None and chunk_frames < 1:
        raise ValueError(f"chunk_frames must be >= 1 or None, got {chunk_frames}")
    windowed = causal and layout == "offset" and chunk_frames is not None

    def triton_reason():
        if not windowed:
            return "takes causal offset layout in chunks only"
        return _kernels().unsupported_reason(q, k, v, mix1, mix2)

    path = choose_backend("HyperGLU", backend, q, triton_reason)
    if not windowed:
        path = "reference"
    if path == "reference" and k.shape[2] != q.shape[2]:
        raise ValueError(
            f"keys of earlier frames need causal offset layout in chunks; got "
            f"{k.shape[2]} keys for {q.shape[2]} queries"
        )
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    with torch.autocast(q.device.type, enabled=False):
        options = {
            "norm": norm,
            "mix1": _cast(mix1, exact),
            "mix2": _cast(mix2, exact),
            "block_size": block_size,
            "norm_eps": norm_eps,
        }
        if path == "triton":
            y = _kernels().hyperglu(q, k, v, past_frames=past_frames, **options)
            return y.to(v.dtype)
        options["kind"] = kind
        operands = [tensor.to(exact) for tensor in (q, k, v)]
        if path == "torch":
            options.update(past_frames=past_frames, chunk_frames=chunk_frames)
            y = hyperglu_windowed(*operands, **options)
        else:
            y = hyperglu_dense(*operands, causal=causal, layout=layout, **options)
    return y.to(v.dtype)


def _kernels():
    """The path of kernels, imported when it is first needed."""
    from hyperconformer.ops.hyperglu import triton_path

    return triton_path


def _cast(mix, dtype):
    """The mixing with every tensor of one floating type."""
    if mix is None:
        return None
    tensors = [None if tensor is None else tensor.to(dtype) for tensor in mix[:4]]
    return LowRankMix(*tensors, mix.shortcut, mix.masked)


def _check_masked(*mixes):
    """Refuse mixings that write to slots of the future."""
    if any(mix is not None and not mix.masked for mix in mixes):
        raise ValueError(
            "a low-rank mixing must be masked in causal mode: unmasked, it writes "
            "to slots of the future"
        )


def _check_operands(q, k, v, kind, norm, layout):
    """Refuse unknown options and shapes that do not belong together."""
    for name, got, known in (
        ("kind", kind, ("glu", "relu")),
        ("norm", norm, ("out_scale", "l2", "none")),
        ("layout", layout, ("offset", "identity")),
    ):
        if got not in known:
            raise ValueError(f"{name} must be one of {known}, got {got!r}")
    score_sets = v.shape[1] * (2 if kind == "glu" else 1)
    expected = (q.shape[0], score_sets, k.shape[2], q.shape[3])
    if q.shape[1] != score_sets or k.shape != expected or v.shape[2] != k.shape[2]:
        raise ValueError(
            f"kind {kind!r} expects q (B, {score_sets}, T, d), k (B, {score_sets}, "
            f"P + T, d) and v (B, {v.shape[1]}, P + T, d_v), got {tuple(q.shape)}, "
            f"{tuple(k.shape)} and {tuple(v.shape)}"
        )
