"""What is compared with what: modules of equal sizes, and weights where they can be."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import torch
from speechbrain.lobes.models import convolution
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from speechbrain.nnet import attention
from speechbrain.nnet import hypermixing as stock
from torch import nn
from torch.nn import functional as F

from hyperconformer import ConvolutionFrontEnd, HyperConformerASR, build_mixer
from hyperconformer.nn.linear import Linear
from hyperconformer.ops.dropout import cpp_path as dropout_kernels
from hyperconformer.ops.hyperglu import LowRankMix, hyperglu

# The encoder of SpeechBrain's LibriSpeech recipe hyperconformer_8M.
RECIPE_8M = {
    "input_size": 640,
    "tgt_vocab": 5000,
    "d_model": 144,
    "nhead": 8,
    "num_encoder_layers": 10,
    "num_decoder_layers": 0,
    "d_ffn": 576,
    "dropout": 0.1,
    "activation": nn.GELU,
    "encoder_module": "conformer",
    "normalize_before": True,
    "causal": False,
}
FRONTEND_8M = {
    "input_shape": (8, 10, 80),
    "num_blocks": 2,
    "num_layers_per_block": 1,
    "out_channels": (64, 32),
    "kernel_sizes": (3, 3),
    "strides": (2, 2),
    "residuals": (False, False),
}
HEADS = 8
FRAMES_A_SECOND = 100


@dataclass
class Contest:
    """Two functions to be timed in turn, and the proof that they may be compared.

    Arguments
    ---------
    case : str
        Sizes, in words.
    step : str
        "forward" or "training" (forward and backward).
    peer : str
        Name of the other.
    frames : int
        Tokens in the batch.
    ours : callable
        Takes nothing.
    theirs : callable
        Takes nothing.
    check : callable
        Takes nothing; returns our tensors and what they should be. A peer that
        computes another function is compared all the same, but what we time is
        then checked against SpeechBrain's module of the same function.
    tolerance : float
        Largest relative error between the two.
    """

    case: str
    step: str
    peer: str
    frames: int
    ours: Callable
    theirs: Callable
    check: Callable
    tolerance: float = 1e-4


def run_forward(module, x):
    """(B, T, D) output of a module, without a graph."""
    with torch.no_grad():
        return [module(x)]


def run_training(module, x):
    """Output, and gradients of tokens and the first weights, of both passes.

    Features, of width 80, are no one's output: they get no gradient.
    """
    x = x.detach().requires_grad_(x.shape[-1] != 80)
    module.zero_grad()
    y = module(x)
    y.backward(upstream_gradient(y.shape))
    gradients = [x.grad, next(module.parameters()).grad]
    return [y.detach(), *(grad for grad in gradients if grad is not None)]


@functools.lru_cache(maxsize=24)
def upstream_gradient(shape):
    """Random: the squares after a LayerNorm, say, would have almost no gradient."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


RUN = {"forward": run_forward, "training": run_training}


class OurMixer(nn.Module):
    """A mixer of the registry, with tokens alone in and out."""

    def __init__(self, name, width, **options):
        super().__init__()
        self.mixer = build_mixer(name, d_model=width, num_heads=HEADS, **options)

    def forward(self, x):
        return self.mixer(x)[0]


class StockHyperMixing(nn.Module):
    """SpeechBrain's HyperMixing, likewise."""

    def __init__(self, width, hypernet_size, length):
        super().__init__()
        self.mixer = stock.HyperMixing(
            width, hypernet_size, num_heads=HEADS, max_length=max(3000, length)
        )

    def forward(self, x):
        return self.mixer(x, x, x)[0]


class StockRelPos(nn.Module):
    """SpeechBrain's attention with relative positions, and the codes that it needs."""

    def __init__(self, width):
        super().__init__()
        self.codes = attention.RelPosEncXL(width)
        self.mixer = attention.RelPosMHAXL(width, HEADS, mask_pos_future=False)

    def forward(self, x):
        return self.mixer(x, x, x, self.codes(x), return_attn_weights=False)


class StockRoPE(nn.Module):
    """SpeechBrain's attention with rotary positions."""

    def __init__(self, width):
        super().__init__()
        self.mixer = attention.RoPEMHA(width, HEADS)

    def forward(self, x):
        return self.mixer(x, x, x, return_attn_weights=False)


class TorchAttention(nn.Module):
    """Projections around torch's scaled_dot_product_attention."""

    def __init__(self, width):
        super().__init__()
        self.inside = nn.Linear(width, 3 * width)
        self.outside = nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.inside(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.outside(y.transpose(1, 2).flatten(2))


def hypermixing_pair(width, length):
    """Our HyperMixing and SpeechBrain's with the same weights."""
    theirs = StockHyperMixing(width, 4 * width, length)
    ours = OurMixer("hypermixing", width, hypernet_size=4 * width)
    ours.load_state_dict(theirs.state_dict())
    return ours.eval(), theirs.eval()


def mixing_contests(width):
    """HyperMixing against SpeechBrain's, at one width.

    Yields
    ------
    Contest
    """
    for batch, length in ((8, 250), (2, 1000), (1, 2500), (1, 10000)):
        ours, theirs = hypermixing_pair(width, length)
        x = torch.randn(batch, length, width)
        for step, run in RUN.items():
            yield Contest(
                f"D={width} {batch}x{length}",
                step,
                "speechbrain HyperMixing",
                batch * length,
                lambda run=run, ours=ours, x=x: run(ours, x),
                lambda run=run, theirs=theirs, x=x: run(theirs, x),
                lambda run=run, ours=ours, theirs=theirs, x=x: (
                    run(ours, x),
                    run(theirs, x),
                ),
            )


class MinimalProducts(nn.Module):
    """The four products of tokens in re-associated HyperMixing, and nothing else.

    Tokens stand head by head already, (B H, T, d); the two hypernetworks' layers
    are one batch of matrices, the sum and the mixture another.
    """

    def __init__(self, batch, width):
        super().__init__()
        d = width // HEADS
        weights = torch.randn(2, batch * HEADS, d, d) / math.sqrt(d)
        self.first, self.second = map(nn.Parameter, weights)

    def forward(self, x):
        a1 = torch.bmm(x, self.first)
        sums = torch.bmm(a1.mT, x)
        a2 = torch.bmm(x, self.second)
        return torch.bmm(a2, sums)


def limit_contests(width):
    """HyperMixing's time over that of its minimal matrix products.

    Yields
    ------
    Contest
        Its ratio is below 1: the peer does only a part of the work.
    """
    for batch, length in ((8, 250), (2, 1000), (1, 2500), (1, 10000)):
        ours, theirs = hypermixing_pair(width, length)
        x = torch.randn(batch, length, width)
        products = MinimalProducts(batch, width)
        heads = x.unflatten(-1, (HEADS, -1)).transpose(1, 2).flatten(0, 1).contiguous()
        for step, run in RUN.items():
            yield Contest(
                f"D={width} {batch}x{length}",
                step,
                "minimal matrix products",
                batch * length,
                lambda run=run, ours=ours, x=x: run(ours, x),
                lambda run=run, products=products, heads=heads: run(products, heads),
                lambda run=run, ours=ours, theirs=theirs, x=x: (
                    run(ours, x),
                    run(theirs, x),
                ),
            )


def linear_contests():
    """Linear layers of the feed-forward steps against torch's, over many lengths.

    Yields
    ------
    Contest
    """
    lengths = torch.randint(
        500, 2000, (20,), generator=torch.Generator().manual_seed(0)
    )
    for inner, outer in ((144, 576), (576, 144), (256, 1024), (512, 2048)):
        ours, theirs = Linear(inner, outer), nn.Linear(inner, outer)
        theirs.load_state_dict(ours.state_dict())
        batches = [torch.randn(1, length, inner) for length in lengths]
        for step, run in RUN.items():

            def run_all(module, run=run, batches=batches):
                return [tensor for x in batches for tensor in run(module, x)]

            yield Contest(
                f"{inner} to {outer}, {len(lengths)} lengths of 500 to 2000",
                step,
                "torch Linear",
                sum(lengths).item(),
                lambda run_all=run_all, ours=ours: run_all(ours),
                lambda run_all=run_all, theirs=theirs: run_all(theirs),
                lambda run_all=run_all, ours=ours, theirs=theirs: (
                    run_all(ours),
                    run_all(theirs),
                ),
            )


class Encoder(nn.Module):
    """Convolutional front end and encoder: (B, T, 80) features in."""

    def __init__(self, frontend, transformer):
        super().__init__()
        self.frontend = frontend
        self.transformer = transformer

    def forward(self, x):
        return self.transformer.encode(self.frontend(x), x.new_ones(len(x)))


def stock_encoder(attention_type):
    """SpeechBrain's encoder of the 8M recipe's sizes."""
    return Encoder(
        convolution.ConvolutionFrontEnd(**FRONTEND_8M),
        TransformerASR(attention_type=attention_type, **RECIPE_8M),
    )


def encoder_contests():
    """The whole encoder of SpeechBrain's 8M recipe, front end included.

    Yields
    ------
    Contest
    """
    same = stock_encoder("hypermixing")
    ours = Encoder(
        ConvolutionFrontEnd(**FRONTEND_8M),
        HyperConformerASR(attention_type="hypermixing", **RECIPE_8M),
    )
    ours.load_state_dict(same.state_dict())
    names = {
        "hypermixing": "speechbrain HyperConformer",
        "RelPosMHAXL": "speechbrain Conformer RelPosMHAXL",
        "RoPEMHA": "speechbrain Conformer RoPEMHA",
    }
    plan = [
        ("hypermixing", "training", 8, 10),
        ("hypermixing", "training", 1, 60),
        # After training: of the memory that it has had, the allocator keeps enough to
        # spare SpeechBrain's encoder page faults, a fifth of its time.
        ("hypermixing", "forward", 1, 30),
        ("RelPosMHAXL", "training", 8, 10),
        ("RelPosMHAXL", "training", 1, 60),
        *(("RoPEMHA", "training", 1, seconds) for seconds in (10, 30, 60, 120)),
    ]
    for kind, step, batch, seconds in plan:
        peer = same if kind == "hypermixing" else stock_encoder(kind)
        x = torch.randn(batch, seconds * FRAMES_A_SECOND, 80)
        run = RUN[step]

        # The proof is made without dropout, the race with it where one trains.
        def check(run=run, x=x):
            return run(ours.eval(), x), run(same.eval(), x)

        def race(module, run=run, x=x, training=step == "training"):
            if module.training != training:
                module.train(training)
            run(module, x)

        yield Contest(
            f"8M encoder {batch} x {seconds} s",
            step,
            names[kind],
            x.shape[0] * x.shape[1],
            lambda race=race: race(ours),
            lambda race=race, peer=peer: race(peer),
            check,
            # Ten layers deep in float32.
            tolerance=1e-3,
        )


@functools.cache
def dropout_operator():
    """Dropout's C++ kernels behind operators of ``torch.library``.

    Returns
    -------
    callable
        With the arguments of :func:`hyperconformer.ops.dropout.cpp_path.dropout`.
    """
    draws = "int seed, int zeroed, float scale, int activation"
    forward, backward = (
        torch.library.custom_op(
            f"benchmarks::dropout_{function.__name__}",
            function,
            mutates_args=(),
            schema=f"({tensors}, {draws}) -> Tensor",
        )
        for function, tensors in (
            (dropout_kernels.forward, "Tensor x"),
            (dropout_kernels.backward, "Tensor x, Tensor grad"),
        )
    )

    def keep(ctx, inputs, output):
        x, *ctx.draws = inputs
        ctx.save_for_backward(*[x][: ctx.draws[-1] > 0])

    def gradients(ctx, grad):
        (x,) = ctx.saved_tensors or (grad,)
        return backward(x, grad, *ctx.draws), None, None, None, None

    forward.register_autograd(gradients, setup_context=keep)

    def dropout(x, seed, zeroed, scale, activation):
        place = dropout_kernels.ACTIVATIONS.index(activation)
        return forward(x.contiguous(), seed, zeroed, scale, place)

    return dropout


def dispatch_contests():
    """The encoder against itself with one of its four kernels behind an operator.

    Of one second, which streams and short utterances are: the cost of a call does not
    depend on how much it computes.

    Yields
    ------
    Contest
    """
    encoder = Encoder(
        ConvolutionFrontEnd(**FRONTEND_8M),
        HyperConformerASR(attention_type="hypermixing", **RECIPE_8M),
    )
    dispatched = mock.patch.object(dropout_kernels, "dropout", dropout_operator())
    x = torch.randn(1, FRAMES_A_SECOND, 80)
    for step, run in RUN.items():

        def race(run=run, training=step == "training"):
            return run(encoder.train(training), x)

        def check(run=run):
            encoder.eval()
            return run(encoder, x), dispatched(run)(encoder, x)

        yield Contest(
            "8M encoder 1 x 1 s",
            step,
            "dropout as an operator",
            FRAMES_A_SECOND,
            race,
            dispatched(race),
            check,
        )


def hyperglu_operands(length, block_size, width=256, rank=8):
    """Random operands of the HyperGLU operator, as its mixer makes them."""

    def draw(*shape):
        return torch.randn(shape) / math.sqrt(shape[-1])

    d = width // 4 // (2 * HEADS)
    q, k = draw(2, 1, 2 * HEADS, length, d).requires_grad_().unbind()
    v = draw(1, HEADS, length, width // HEADS).requires_grad_()
    mixes = [
        LowRankMix(
            draw(heads, block_size, rank) / rank,
            draw(heads, rank, block_size) / rank,
            draw(heads, block_size),
            draw(1, heads, length, rank).sigmoid(),
        )
        for heads in (2 * HEADS, HEADS)
    ]
    return [q, k, v], {"mix1": mixes[0], "mix2": mixes[1], "block_size": block_size}


def run_hyperglu(operands, options, chunk_frames):
    """Output and gradients; ``chunk_frames`` None is the dense form."""
    y = hyperglu(*operands, chunk_frames=chunk_frames, **options)
    return [y.detach(), *torch.autograd.grad(y, operands, upstream_gradient(y.shape))]


def hyperglu_contests(length=2000):
    """HyperGLU in chunks against its dense form.

    The whole sequence in the window, as the published layer needs it, and the
    window that the mixer has unless told otherwise.

    Yields
    ------
    Contest
    """
    for block_size in (length, 256):
        operands, options = hyperglu_operands(length, block_size)

        def run(chunk_frames, operands=operands, options=options):
            return run_hyperglu(operands, options, chunk_frames)

        yield Contest(
            f"HyperGLU D=256 1x{length} window {block_size}",
            "training",
            "dense form",
            length,
            lambda run=run: run(64),
            lambda run=run: run(None),
            lambda run=run: (run(64), run(None)),
        )


def sweep_contenders(width=256):
    """Mixers whose cost against length is measured.

    Returns
    -------
    dict of str to callable
        From the length to the module.
    """
    contenders = {
        name: lambda length, name=name: OurMixer(name, width)
        for name in ("hypermixing", "hyperglu", "linear_attention", "summary_mixing")
    }
    contenders["speechbrain HyperMixing"] = lambda length: StockHyperMixing(
        width, 4 * width, length
    )
    contenders["speechbrain RelPosMHAXL"] = lambda length: StockRelPos(width)
    contenders["speechbrain RoPEMHA"] = lambda length: StockRoPE(width)
    contenders["torch attention"] = lambda length: TorchAttention(width)
    return contenders


def memory_contenders(width=256):
    """The same and our other mixers: from the length to the module."""
    others = ("hypermlp", "mixture_of_attention")
    return {
        **sweep_contenders(width),
        **{name: lambda length, name=name: OurMixer(name, width) for name in others},
    }
