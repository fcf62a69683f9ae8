"""HyperMixing of a sequence with itself on a CPU, in ``cpp_kernels.cpp``."""

import ctypes
import functools
import pathlib

import torch

from hyperconformer.ops import cpp

SOURCE = pathlib.Path(__file__).with_name("cpp_kernels.cpp")

WIDEST_HEAD = 128
"""Of wider heads the matrices leave the cache, and torch's products are better."""

HALF_OR_SINGLE = (torch.float32, torch.bfloat16, torch.float16)


def unsupported_reason(
    values, keys, queries, key_hypernet, query_hypernet, codes, masks
):
    """Why the kernels cannot take these arguments.

    Arguments
    ---------
    values, keys, queries, key_hypernet, query_hypernet
        As in :func:`hyperconformer.ops.hypermixing.hypermixing`.
    codes : torch.Tensor or None
        As there.
    masks : tuple of torch.Tensor or None
        Padding of the keys and of the queries.

    Returns
    -------
    str or None
        The reason, or None if they can.
    """
    if keys is not queries or masks[0] is not masks[1]:
        return "needs one tensor, and one mask, as keys and queries"
    tensors = values, keys, *key_hypernet, *query_hypernet, codes
    reason = cpp.unsupported_tensors(tensors, HALF_OR_SINGLE)
    reason = reason or cpp.unsupported_mask(masks[0], values)
    if reason:
        return reason
    if codes is not None and codes.shape[1:] != values.shape[2:]:
        return f"needs position codes (T, D), got {tuple(codes.shape)}"
    shapes = [net.fc1_weights.shape for net in (key_hypernet, query_hypernet)]
    if shapes[0] != shapes[1] or max(shapes[0][1:]) > WIDEST_HEAD:
        return (
            f"needs two hypernetworks of one shape, of widths up to {WIDEST_HEAD}, "
            f"got {tuple(shapes[0])} and {tuple(shapes[1])}"
        )
    heads, hidden, _ = shapes[0]
    mixing = key_hypernet.fc2_weights.shape[1]
    for _, b, g, c in (key_hypernet, query_hypernet):
        sizes = b is None or b.shape, g.shape, c is None or c.shape
        expected = (
            b is None or (heads, hidden),
            (heads, mixing, hidden),
            c is None or (heads, mixing),
        )
        if sizes != expected:
            return f"needs hypernetworks of one size, got {sizes} for {expected}"
    return cpp.unsupported_reason(SOURCE)


def hypermixing(
    values,
    keys,
    queries,
    key_hypernet,
    query_hypernet,
    *,
    codes=None,
    scale=1.0,
    key_padding_mask=None,
    query_padding_mask=None,
):
    """Mix tokens; see :func:`hyperconformer.ops.hypermixing.hypermixing`.

    Arguments are those of :func:`hyperconformer.ops.hypermixing.torch_path.hypermixing`
    for which :func:`unsupported_reason` is None; the result is float32.
    """
    dtype = torch.float32
    return _SelfMixing.apply(
        values.to(dtype),
        None if keys is values else keys.to(dtype),
        *key_hypernet.to(dtype),
        *query_hypernet.to(dtype),
        codes if codes is None else codes.to(dtype).detach(),
        key_padding_mask,
        scale,
    )


class _SelfMixing(torch.autograd.Function):
    """Keeps its input and two small matrices a head; makes the rest again in backward.

    Arguments
    ---------
    values : torch.Tensor
        (B, T, D) float32, as all.
    tokens : torch.Tensor, optional
        (B, T, D) what both hypernetworks read; None = the values.
    f1, b1, g1, c1 : torch.Tensor
        The key hypernetwork, see :class:`Hypernet`; biases may be None.
    f2, b2, g2, c2 : torch.Tensor
        The query hypernetwork, of the same sizes.
    codes : torch.Tensor, optional
        (>= T, D) position codes.
    padding_mask : torch.Tensor, optional
        (B, T) bool, True = padding.
    scale : float
        Factor on the tokens.

    Returns
    -------
    torch.Tensor
        (B, T, D), 0 in padding.
    """

    @staticmethod
    def forward(ctx, values, *rest):
        *rest, scale = rest
        inputs = [x if x is None else x.contiguous() for x in (values, *rest)]
        problem = _problem(*inputs, scale)
        shape = values.shape[0], problem.heads, _matrix_size(problem)
        sums, mixture = values.new_empty(shape), values.new_empty(shape)
        out = torch.empty_like(inputs[0])
        _library().hypermixing_forward(
            ctypes.byref(problem), *map(cpp.address, (sums, mixture, out))
        )
        ctx.save_for_backward(*inputs, sums, mixture)
        ctx.scale = scale
        return out

    @staticmethod
    @cpp.once
    def backward(ctx, grad_out):
        *inputs, sums, mixture = ctx.saved_tensors
        values, tokens, *weights, _, _ = inputs
        problem = _problem(*inputs, ctx.scale)
        grad_values = torch.empty_like(values)
        grad_tokens = grad_values if tokens is None else torch.empty_like(values)
        gradients = [None if w is None else torch.empty_like(w) for w in weights]
        # The name keeps a copy alive while its address is in use.
        grad_out = grad_out.contiguous()
        _library().hypermixing_backward(
            ctypes.byref(problem),
            *map(cpp.address, (sums, mixture, grad_out, grad_values, grad_tokens)),
            ctypes.byref(_Hypernet(*map(cpp.address, gradients[:4]))),
            ctypes.byref(_Hypernet(*map(cpp.address, gradients[4:]))),
        )
        grad_tokens = None if tokens is None else grad_tokens
        return grad_values, grad_tokens, *gradients, None, None, None


class _Hypernet(ctypes.Structure):
    """``Hypernet`` and ``HypernetGradients`` of the C++ file."""

    _fields_ = [
        (name, ctypes.c_void_p) for name in ("fc1", "fc1_biases", "fc2", "fc2_biases")
    ]


class _Problem(ctypes.Structure):
    """``Problem`` of the C++ file, field by field."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "length", "heads", "width")),
        *((name, ctypes.c_int64) for name in ("hidden", "mixing", "threads")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("values", "tokens", "codes", "padding")),
        ("key_hypernet", _Hypernet),
        ("query_hypernet", _Hypernet),
    ]


def _problem(values, tokens, *rest):
    """A ``Problem`` of contiguous tensors; they must outlive it."""
    *weights, codes, mask, scale = rest
    heads, hidden, width = weights[0].shape
    return _Problem(
        *values.shape[:2],
        heads,
        width,
        hidden,
        weights[2].shape[1],
        torch.get_num_threads(),
        scale,
        cpp.address(values),
        cpp.address(values if tokens is None else tokens),
        cpp.address(codes),
        cpp.address(mask),
        _Hypernet(*map(cpp.address, weights[:4])),
        _Hypernet(*map(cpp.address, weights[4:])),
    )


def _matrix_size(problem):
    """Numbers in S and s of one head, with the padding of the kernels."""
    return _library().hypermixing_matrix_size(problem.width, problem.hidden)


@functools.cache
def _library():
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    library = cpp.declare(
        SOURCE,
        {
            "hypermixing_forward": [pointer] * 4,
            "hypermixing_backward": [pointer] * 8,
            "hypermixing_matrix_size": [integer] * 2,
        },
    )
    library.hypermixing_matrix_size.restype = integer
    return library
