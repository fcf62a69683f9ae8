"""Every Triton kernel against float64: outputs and all gradients, in every dtype."""

import functools
import itertools
import math

import torch

from benchmarks.gpu.errors import (
    F32,
    compare,
    hyperglu_errors,
    mix_in_chunks,
    mix_packed,
    mixing_errors,
    round_net,
    run_mixing,
)
from benchmarks.gpu.operands import make_case, ragged_mask, random_hypernet
from benchmarks.gpu.rows import Case, Failed, Measure
from hyperconformer.core.masks import ChunkRule
from hyperconformer.mixers.hypermixing import sinusoidal_codes, sinusoidal_frequencies
from hyperconformer.ops.hyperglu import LowRankMix
from hyperconformer.ops.hypermixing import chunked, hypermixing_in_chunks

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

# Utterances, tokens of the longest, D and H. Up to 16 H tokens an utterance of the
# batch, one kernel does all; above, and for heads wider than 64, three do.
MIXING_SIZES = {
    "one frame": (1, 1, 64, 4),
    "heads of 18": (8, 250, 144, 8),
    "heads of 32": (8, 1000, 256, 8),
    "heads of 64 in spans": (2, 3000, 512, 8),
    "heads of 128": (3, 500, 256, 2),
    "long": (1, 30_000, 256, 8),
}
QUICK_MIXING_SIZES = {"one frame": (1, 1, 32, 2), "in spans": (2, 40, 24, 1)}

HYPERGLU_CASES = {
    "one frame": {"frames": 1, "block_size": 30, "sizes": (1, 4, 16, 32)},
    "window of 256": {
        "frames": 1000,
        "block_size": 256,
        "sizes": (2, 8, 4, 32),
        "rank": 8,
    },
    "heads of 18 and 24": {"frames": 300, "block_size": 64, "sizes": (2, 4, 18, 24)},
    "heads of 64": {"frames": 200, "block_size": 33, "sizes": (2, 2, 64, 64)},
    "window of one": {"frames": 50, "block_size": 1, "diag": False},
    "HyperMLP without a shortcut": {
        "kind": "relu",
        "frames": 200,
        "block_size": 64,
        "sizes": (2, 4, 16, 32),
        "rank": 16,
        "shortcut": False,
    },
    "without mixings": {
        "frames": 200,
        "block_size": 64,
        "sizes": (2, 4, 16, 32),
        "mix1": False,
        "mix2": False,
        "norm": "none",
    },
    "streams": {
        "frames": 70,
        "block_size": 64,
        "past": 63,
        "past_frames": [2, 1000],
        "sizes": (2, 4, 16, 32),
    },
    "long": {
        "frames": 30_000,
        "block_size": 256,
        "sizes": (1, 4, 8, 32),
        "rank": 8,
    },
}
# Of half precision only: in float32, heads this wide would spill registers.
WIDE_HYPERGLU_CASES = {
    "heads of 128": {"frames": 100, "block_size": 33, "sizes": (1, 2, 128, 40)},
}
QUICK_HYPERGLU_CASES = {
    "one frame": {"frames": 1, "block_size": 4, "sizes": (1, 1, 3, 4)},
    "streams": {
        "frames": 17,
        "block_size": 5,
        "past": 4,
        "past_frames": [2],
        "sizes": (1, 1, 3, 4),
    },
}


def list_cases(settings, end):
    """The cases, those of HyperMixing first; see ``processes.run_part``."""
    if settings.quick:
        mixing, glu, wide = _quick_mixing(), QUICK_HYPERGLU_CASES, {}
    else:
        mixing, glu, wide = _all_mixing(), HYPERGLU_CASES, WIDE_HYPERGLU_CASES
    cases = []
    for name, errors in mixing.items():
        for dtype in DTYPES:
            cases.append(_case(settings, f"HyperMixing, {name}", dtype, errors))
    for name, options in {**glu, **wide}.items():
        errors = functools.partial(_hyperglu, options)
        for dtype in DTYPES:
            if name not in wide or dtype != "float32":
                cases.append(_case(settings, f"HyperGLU, {name}", dtype, errors))
    return cases


def _case(settings, name, dtype, errors):
    """A case of a function from dtype and device to what ``compare`` returns."""

    def measure():
        torch.manual_seed(0)
        yield from judge(errors(DTYPES[dtype], torch.device(settings.device)))

    return Case(name, dtype, measure)


def judge(errors):
    """Yield what a table of errors says, and raise if one is not allowed.

    Arguments
    ---------
    errors : list of (float, float, float)
        Of the output and the gradients, from ``compare``.

    Raises
    ------
    Failed
        If an error is larger than allowed, or not a number.
    """
    relative = [error / max(size, 1e-30) for error, _, size in errors]
    over = [error / allowed for error, allowed, _ in errors]
    worst = math.nan if any(map(math.isnan, over)) else max(over)
    yield Measure("error of the output", relative[0], "of the largest")
    if len(errors) > 1:
        gradients = relative[1:]
        largest = math.nan if any(map(math.isnan, gradients)) else max(gradients)
        yield Measure("error of the gradients", largest, "of the largest")
    yield Measure("error over allowed", worst)
    if not worst <= 1:
        places = ", ".join(
            "output" if place == 0 else f"gradient {place}"
            for place, ratio in enumerate(over)
            if not ratio <= 1
        )
        raise Failed(f"too far from float64: {places}")


def _all_mixing():
    """Names to functions, of everything that HyperMixing's kernels do."""
    cases = {
        name: functools.partial(_mixing, sizes) for name, sizes in MIXING_SIZES.items()
    }
    cases["nothing optional, tied weights"] = functools.partial(_tied, (2, 300, 144, 8))
    cases["other queries"] = functools.partial(_cross, (2, 300, 256, 8), 500)
    cases["sinusoids"] = functools.partial(_sinusoids, (4, 500, 144, 8))
    cases["packed utterances"] = functools.partial(_packed, [1, 400, 7, 1000], 256, 8)
    for rule in (ChunkRule(16, 2), ChunkRule(40)):
        name = f"chunks of {rule.chunk_frames}, {rule.left_chunks} left"
        cases[name] = functools.partial(_chunks, (2, 430, 144, 8), rule)
    cases["a stream"] = functools.partial(_stream, (2, 96, 144, 8), ChunkRule(16, 2))
    return cases


def _quick_mixing():
    """The same, as small as the interpreter needs it."""
    cases = {
        name: functools.partial(_mixing, sizes)
        for name, sizes in QUICK_MIXING_SIZES.items()
    }
    cases["sinusoids"] = functools.partial(_sinusoids, (1, 20, 24, 2))
    cases["packed utterances"] = functools.partial(_packed, [1, 20], 24, 2)
    cases["chunks"] = functools.partial(_chunks, (1, 20, 16, 1), ChunkRule(8))
    cases["a stream"] = functools.partial(_stream, (1, 16, 16, 1), ChunkRule(8, 1))
    return cases


def _operands(sizes, dtype, device, bias=True):
    """Tokens, weights and codes that the dtype holds exactly."""
    batch, length, width, heads = sizes
    d = width // heads
    nets = [
        round_net(random_hypernet(heads, d, d, 4 * d, bias, F32), dtype, F32)
        for _ in "12"
    ]
    nets = [
        type(net)(*(w if w is None else w.detach().to(device) for w in net))
        for net in nets
    ]
    # Smaller where there are many: else sums over them leave the range of float16.
    smaller = 2.0 ** -max(0, round(math.log2(length / 500)))
    x = (smaller * torch.randn(batch, length, width)).to(device, dtype)
    codes = torch.randn(length + 3, width).to(device, dtype).float()
    return x, nets, codes


def _mixing(sizes, dtype, device):
    """Self-mixing with padding, which holds NaN."""
    x, nets, codes = _operands(sizes, dtype, device)
    mask = ragged_mask(*sizes[:2]).to(device)
    x = x.masked_fill(mask[..., None], math.nan)
    masks = {"key_padding_mask": mask, "query_padding_mask": mask}
    return mixing_errors(x, nets, {"codes": codes, "scale": 1.5, **masks})


def _tied(sizes, dtype, device):
    x, (net, _), _ = _operands(sizes, dtype, device, bias=False)
    return mixing_errors(x, [net, net], {})


def _cross(sizes, num_queries, dtype, device):
    batch, length, width, _ = sizes
    x, nets, _ = _operands(sizes, dtype, device)
    options = {
        "codes": torch.randn(max(length, num_queries), width).to(device, dtype).float(),
        "key_padding_mask": ragged_mask(batch, length).to(device),
        "query_padding_mask": ragged_mask(batch, num_queries).to(device),
    }
    queries = torch.randn(batch, num_queries, width).to(device, dtype)
    return mixing_errors(x, nets, options, queries)


def _sinusoids(sizes, dtype, device):
    """Codes that the kernels compute, to 2e-7: torch's may be as far off."""
    x, nets, _ = _operands(sizes, dtype, device)
    codes = sinusoidal_codes(*sizes[1:3])
    off = codes + 2e-7 * torch.randn_like(codes).sign()
    options = {
        "codes": codes.to(device),
        "frequencies": sinusoidal_frequencies(sizes[2]).to(device),
    }
    return mixing_errors(x, nets, options, peer_options={"codes": off.to(device)})


def _packed(lengths, width, heads, dtype, device):
    x, nets, codes = _operands((1, sum(lengths), width, heads), dtype, device)
    options = {
        "starts": torch.tensor([0, *itertools.accumulate(lengths)], device=device),
        "longest": max(lengths),
        "codes": codes[: max(lengths)],
        "scale": 0.5,
    }
    return mixing_errors(x, nets, options, mix=mix_packed)


def _chunks(sizes, rule, dtype, device):
    batch, length, _, heads = sizes
    x, nets, codes = _operands(sizes, dtype, device)
    options = {
        "chunk": rule,
        "codes": codes,
        "padding_mask": ragged_mask(batch, length).to(device),
        "decay": torch.linspace(0.9, 0.99, heads).to(device, dtype).float(),
        "normalize": True,
    }
    return mixing_errors(x, nets, options, mix=mix_in_chunks)


def _stream(sizes, rule, dtype, device):
    """Two steps of streams against the whole; forward alone, streams do not train."""
    batch, length, _, _ = sizes
    x, nets, codes = _operands(sizes, dtype, device)
    codes, options = codes[:length], {"chunk": rule}
    whole = {**options, "codes": codes}
    (exact,), (peer,) = (
        run_mixing(
            "reference",
            to,
            x,
            [round_net(net, dtype, to) for net in nets],
            whole,
            mix=mix_in_chunks,
        )[:1]
        for to in (torch.float64, dtype)
    )
    past = chunked.init_past(nets[0], batch, chunk=rule)
    half, outputs = length // 2, []
    for part in (slice(half), slice(half, None)):
        here = codes[part].to(dtype).expand(batch, -1, -1)
        with torch.no_grad():
            out, past = hypermixing_in_chunks(
                x[:, part], *nets, codes=here, past=past, backend="triton", **options
            )
        outputs.append(out)
    return compare([torch.cat(outputs, dim=1)], [peer], [exact])


def _hyperglu(options, dtype, device):
    options = dict(options)
    call = {"norm": options.pop("norm", "out_scale")}
    past_frames = options.pop("past_frames", None)
    case = make_case(**options)
    if past_frames is not None:
        call["past_frames"] = torch.tensor(past_frames, device=device)
        for stream, seen in enumerate(past_frames):
            for name in "kv":
                case[name][stream, :, : max(0, options["past"] - seen)] = 0.0
    return hyperglu_errors(_moved(case, device), dtype, **call)


def _moved(case, device):
    """HyperGLU's operands on another device."""

    def move(value):
        if isinstance(value, LowRankMix):
            return LowRankMix(*map(move, value))
        return value.to(device) if isinstance(value, torch.Tensor) else value

    return {name: move(value) for name, value in case.items()}
