"""Times of the kernels beside torch's operations, attention and linear attention.

Operators alone: no projections, no norms. HyperMixing makes its weights of the tokens,
HyperGLU gets queries, keys and values, and so do the peers. Every batch has about as
many frames, in utterances of one length.
"""

import functools
import importlib.util

import torch
from torch.nn import functional as F

from benchmarks.gpu.errors import round_net, tf32_like_the_kernels
from benchmarks.gpu.operands import leaves, make_case, random_hypernet
from benchmarks.gpu.parity import DTYPES
from benchmarks.gpu.processes import describe
from benchmarks.gpu.rows import Case, LeftOut, Measure
from benchmarks.gpu.timing import peak_mib, time_call
from hyperconformer.ops.hyperglu import LowRankMix, hyperglu
from hyperconformer.ops.hypermixing import hypermixing

LENGTHS = (100, 300, 1000, 3000, 10_000, 30_000)
FRAMES = 32_000
WIDTH, HEADS = 256, 8
QUICK_LENGTHS = (100, 300)
QUICK_FRAMES, QUICK_WIDTH, QUICK_HEADS = 300, 32, 2
WINDOW, RANK = 256, 8

HYPERMIXING = "HyperMixing, Triton"
HYPERGLU = "HyperGLU, Triton"


def list_cases(settings, end):
    """The cases, bfloat16 first; see ``processes.run_part``."""
    lengths = QUICK_LENGTHS if settings.quick else LENGTHS
    dtypes = ("float32",) if settings.quick else ("bfloat16", "float32")
    cases = []
    for dtype in dtypes:
        for length in lengths:
            cases += [
                Case(
                    size_name(contender, length, settings),
                    dtype,
                    functools.partial(_measure, contender, length, dtype, settings),
                )
                for contender in CONTENDERS
            ]
    return cases


def sizes(length, settings):
    """B, T, D and H of a batch of utterances of one length."""
    if settings.quick:
        return max(1, QUICK_FRAMES // length), length, QUICK_WIDTH, QUICK_HEADS
    return max(1, FRAMES // length), length, WIDTH, HEADS


def size_name(contender, length, settings):
    """What a case is called: the report takes it apart again."""
    batch, length, width, heads = sizes(length, settings)
    return f"{contender} | {batch} x {length} | D={width} H={heads}"


def _measure(contender, length, dtype_name, settings):
    """Yield times, rates and memory of forward, and of forward and backward."""
    if settings.device == "cpu" and contender.endswith("Triton"):
        raise LeftOut("times of Triton's interpreter mean nothing")
    torch.manual_seed(0)
    dtype, device = DTYPES[dtype_name], settings.device
    # Torch's paths compute half precision in float32, and may use TF32 for it.
    with tf32_like_the_kernels(dtype, torch.device(device)):
        build = CONTENDERS[contender]
        contest = build(*sizes(length, settings), dtype, device, settings)
        yield from _steps(*contest, settings)


def _steps(run, inputs, flops, settings):
    """Yield the measures of a function, its inputs and its least operations."""
    device = settings.device
    with torch.no_grad():
        out = run()
    grad = torch.randn_like(out)
    read, written = (sum(t.nbytes for t in tensors) for tensors in (inputs, [out]))

    def forward():
        with torch.no_grad():
            run()

    def training():
        torch.autograd.grad(run(), inputs, grad)

    # Least bytes: each input read and each output written once in forward. Backward
    # reads the inputs and the output's gradient, and writes the inputs' gradients.
    # Least products: backward has twice as many.
    steps = (
        ("forward", forward, read + written, flops),
        ("forward + backward", training, 3 * read + 2 * written, 3 * flops),
    )
    for step, function, moved, products in steps:
        times = time_call(function, device, settings.quick)
        yield from times.measures(step)
        yield Measure(f"{step}, least bytes", moved / times.p50 / 1e6, "GB/s")
        yield Measure(f"{step}, products", products / times.p50 / 1e9, "TFLOP/s")
        mib = peak_mib(function, device)
        if mib is not None:
            yield Measure(f"{step}, peak memory", mib, "MiB")


def _hypermixing(backend, batch, length, width, heads, dtype, device, settings):
    d, k = width // heads, 4 * width // heads
    nets = [random_hypernet(heads, d, d, k, dtype=torch.float32) for _ in "12"]
    nets = [
        round_net(net._make(w.to(device) for w in net), torch.float32, torch.float32)
        for net in nets
    ]
    x = torch.randn(batch, length, width, device=device, dtype=dtype)
    x.requires_grad_()
    inputs = [x, *nets[0], *nets[1]]

    def run():
        return hypermixing(x, x, x, *nets, backend=backend)

    # A token and head: two layers, the sums, the mixture; k rows a head for all.
    products = 8 * batch * length * width * d + 4 * batch * heads * k * d * d
    return run, inputs, products


def _compiled_hypermixing(*arguments):
    run, inputs, products = _hypermixing("torch", *arguments)
    return _compiled(run, arguments[-1]), inputs, products


def _hyperglu(backend, batch, length, width, heads, dtype, device, settings):
    d, value_width = max(1, width // (8 * heads)), width // heads
    case = make_case(
        frames=length,
        block_size=WINDOW,
        sizes=(batch, heads, d, value_width),
        rank=RANK,
    )

    def cast(value, to):
        return value.to(device, to) if isinstance(value, torch.Tensor) else value

    for name in "qkv":
        case[name] = cast(case[name], dtype)
    for name in ("mix1", "mix2"):
        case[name] = LowRankMix(*(cast(t, torch.float32) for t in case[name]))
    inputs = leaves(case)
    # A row and score set: the visible keys, and both sides of its mixing; and values.
    seen = sum(min(row + 1, WINDOW) for row in range(length))
    each = 2 * (2 * d + 4 * RANK) + (value_width * 2 + 4 * RANK)
    return (
        lambda: hyperglu(**case, backend=backend),
        inputs,
        batch * heads * seen * each,
    )


def _attention(batch, length, width, heads, dtype, device, settings):
    shape = batch, heads, length, width // heads
    q, k, v = (
        torch.randn(shape, device=device, dtype=dtype).requires_grad_() for _ in "qkv"
    )

    def run():
        return F.scaled_dot_product_attention(q, k, v)

    return run, [q, k, v], 4 * batch * length**2 * width


def _linear_attention(batch, length, width, heads, dtype, device, settings):
    if importlib.util.find_spec("fla") is None:
        raise LeftOut("flash-linear-attention is not installed")
    if device == "cpu":
        raise LeftOut("flash-linear-attention needs a GPU")
    try:
        from fla.ops.linear_attn import chunk_linear_attn
    except Exception as error:
        raise LeftOut(f"flash-linear-attention does not load: {error}") from error
    shape = batch, length, heads, width // heads
    q, k, v = (
        torch.randn(shape, device=device, dtype=dtype).requires_grad_() for _ in "qkv"
    )

    def run():
        try:
            return chunk_linear_attn(q, k, v, normalize=False)[0]
        except Exception as error:
            raise LeftOut(f"flash-linear-attention: {describe(error)}") from error

    # Causal: each token adds to the (d, d) sums and reads them.
    return run, [q, k, v], 4 * batch * length * width * (width // heads)


def _compiled(run, settings):
    """A function compiled for its one length."""
    torch.compiler.reset()
    backend = "inductor" if settings.device == "cuda" else "aot_eager"
    return torch.compile(run, backend=backend, dynamic=False)


CONTENDERS = {
    HYPERMIXING: functools.partial(_hypermixing, "triton"),
    "HyperMixing, torch": functools.partial(_hypermixing, "torch"),
    "HyperMixing, torch.compile": _compiled_hypermixing,
    HYPERGLU: functools.partial(_hyperglu, "triton"),
    "HyperGLU, torch": functools.partial(_hyperglu, "torch"),
    "torch scaled_dot_product_attention": _attention,
    "flash-linear-attention, chunk_linear_attn": _linear_attention,
}
