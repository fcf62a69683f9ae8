"""How far the Triton kernels are from float64, and how far they may be.

A kernel may be twice as far as torch in the same precision: it rounds as often, but
adds up in another order. The tests of the operators use these functions too.
"""

import contextlib

import torch

from benchmarks.gpu.operands import leaves
from hyperconformer.ops.hyperglu import LowRankMix, hyperglu
from hyperconformer.ops.hypermixing import (
    Hypernet,
    hypermixing,
    hypermixing_in_chunks,
    hypermixing_packed,
)

F32, F64 = torch.float32, torch.float64

SLACK = 1e-5
"""Added to the allowed error: with a single token, torch may be exact."""


def compare(got, peer, exact):
    """The errors of tensors, and the errors that are allowed.

    Arguments
    ---------
    got : list of torch.Tensor
        What the kernels computed.
    peer : list of torch.Tensor
        What torch computed in the same precision.
    exact : list of torch.Tensor
        The same in float64.

    Returns
    -------
    list of (float, float, float)
        Of each tensor the largest absolute error, the largest allowed, and the largest
        absolute value of the exact tensor.

    Raises
    ------
    ValueError
        If a number or a shape of the tensors differs.
    """
    if [t.shape for t in got] != [t.shape for t in exact]:
        shapes = [[tuple(t.shape) for t in tensors] for tensors in (got, exact)]
        raise ValueError(f"got tensors of {shapes[0]}, expected {shapes[1]}")
    found = []
    for ours, theirs, truth in zip(got, peer, exact):
        # abs().max() passes NaN on.
        error, other = ((t.double() - truth).abs().max().item() for t in (ours, theirs))
        found.append((error, 2 * other + SLACK, truth.abs().max().item()))
    return found


def mix_whole(x, queries, nets, **options):
    """HyperMixing of (B, N, D) tokens, read by (B, M, D) queries."""
    return hypermixing(x, x, queries, *nets, **options)


def mix_in_chunks(x, queries, nets, **options):
    """The same under a chunk rule; the queries are the tokens."""
    return hypermixing_in_chunks(x, *nets, **options)[0]


def mix_packed(x, queries, nets, *, starts, longest, **options):
    """The same of utterances that stand one after another in (1, rows, D)."""
    return hypermixing_packed(x[0], starts, longest, *nets, **options)[None]


def round_net(net, through, dtype):
    """The weights rounded through one dtype, as leaves of another."""
    return Hypernet(
        *(
            w if w is None else w.detach().to(through).to(dtype).requires_grad_()
            for w in net
        )
    )


def run_mixing(backend, dtype, x, nets, options, queries=None, mix=mix_whole, size=1.0):
    """Output and gradients of one path of HyperMixing.

    Arguments
    ---------
    backend : str
        The path.
    dtype : torch.dtype
        Of tokens and codes.
    x : torch.Tensor
        (B, N, D).
    nets : list of Hypernet
        For keys and queries.
    options : dict
        Those of the operator; ``decay`` gets a gradient.
    queries : torch.Tensor, optional
        (B, M, D); None = the tokens.
    mix : callable
        One of the functions above.
    size : float
        What the output's gradient, from -1 to 1, is divided by.

    Returns
    -------
    list of torch.Tensor
    """
    x = x.detach().to(dtype).requires_grad_()
    inputs = [x]
    if queries is not None:
        queries = queries.detach().to(dtype).requires_grad_()
        inputs.append(queries)
    options = dict(options)
    if options.get("codes") is not None:
        options["codes"] = options["codes"].to(dtype)
    if options.get("decay") is not None:
        # A parameter: float32 for the kernels; the reference has one dtype for all.
        own = F32 if backend == "triton" else dtype
        options["decay"] = options["decay"].detach().to(own).requires_grad_()
        inputs.append(options["decay"])
    out = mix(x, x if queries is None else queries, nets, backend=backend, **options)
    inputs += [w for net in dict.fromkeys(nets) for w in net if w is not None]
    return [out, *torch.autograd.grad(weighted_sum(out, size), inputs)]


def weighted_sum(out, size=1.0):
    """A number that depends on every element of a tensor in another way."""
    weight = torch.linspace(-1, 1, out.numel(), dtype=F64, device=out.device) / size
    return (out * weight.view(out.shape).to(out.dtype)).sum()


def mixing_errors(x, nets, options, queries=None, mix=mix_whole, peer_options=None):
    """Errors of HyperMixing's kernels, see :func:`compare`.

    Arguments
    ---------
    x, nets, options, queries, mix
        As :func:`run_mixing` takes them, of a dtype that holds them exactly.
    peer_options : dict, optional
        Options that torch gets in the same precision, in place of those.

    Returns
    -------
    list of (float, float, float)
        Of the output and the gradients.
    """
    dtype = x.dtype
    tied = nets[0] is nets[1]

    def weights(to):
        first = round_net(nets[0], dtype, to)
        return [first, first if tied else round_net(nets[1], dtype, to)]

    rest = queries, mix
    exact = run_mixing("reference", F64, x, weights(F64), options, *rest)
    size = 1.0
    if dtype == torch.float16:
        # Gradients of the weights would leave the range of float16. Those of large
        # outputs are small anyway, because of the LayerNorm that follows.
        size = max(1.0, *(t.abs().max().item() / 1000 for t in exact))
        exact[1:] = [gradient / size for gradient in exact[1:]]
    with tf32_like_the_kernels(dtype, x.device):
        theirs = {**options, **(peer_options or {})}
        peer = run_mixing("reference", dtype, x, weights(dtype), theirs, *rest, size)
    got = run_mixing("triton", dtype, x, weights(F32), options, *rest, size)
    return compare(got, peer, exact)


def round_case(case, through, dtype, mix_dtype):
    """HyperGLU's operands rounded through one dtype, as leaves of others."""

    def cast(tensor, dtype):
        return None if tensor is None else tensor.detach().to(through).to(dtype)

    new = {**case, **{name: cast(case[name], dtype) for name in "qkv"}}
    for name in ("mix1", "mix2"):
        if case[name] is not None:
            *tensors, shortcut, masked = case[name]
            tensors = [cast(tensor, mix_dtype) for tensor in tensors]
            new[name] = LowRankMix(*tensors, shortcut, masked)
    return new


def run_hyperglu(backend, case, **options):
    """Output and gradients of one path of HyperGLU."""
    inputs = leaves(case)
    y = hyperglu(**case, backend=backend, **options)
    return [y, *torch.autograd.grad(weighted_sum(y), inputs)]


def hyperglu_errors(case, dtype, **options):
    """Errors of HyperGLU's kernels, see :func:`compare`.

    Arguments
    ---------
    case : dict
        Of :func:`benchmarks.gpu.operands.make_case`.
    dtype : torch.dtype
        Of queries, keys and values.
    **options
        Further arguments of the operator.

    Returns
    -------
    list of (float, float, float)
        Of the output and the gradients.
    """
    exact = run_hyperglu("torch", round_case(case, dtype, F64, F64), **options)
    with tf32_like_the_kernels(dtype, case["q"].device):
        peer = run_hyperglu("torch", round_case(case, dtype, dtype, F32), **options)
    got = run_hyperglu("triton", round_case(case, dtype, dtype, F32), **options)
    if [t.dtype for t in got] != [t.dtype for t in peer]:
        raise ValueError("the kernels' outputs or gradients are not of torch's dtypes")
    past_frames = options.get("past_frames")
    if past_frames is not None:
        # Keys and values from before a stream are zeros, and get no gradient of ours.
        past = case["k"].shape[2] - case["q"].shape[2]
        slot = torch.arange(case["k"].shape[2], device=past_frames.device)
        absent = slot < (past - past_frames).clamp_min(0)[:, None]
        for tensors in (exact, peer):
            for gradient in tensors[2:4]:
                gradient.masked_fill_(absent[:, None, :, None], 0.0)
    return compare(got, peer, exact)


@contextlib.contextmanager
def tf32_like_the_kernels(dtype, device):
    """Let torch multiply float32 on a GPU as the kernels do for tokens of a dtype.

    For half precision they use TF32, where they do not multiply it as it is.
    """
    if device.type != "cuda" or dtype == F32:
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
