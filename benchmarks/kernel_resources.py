"""What the Triton kernels of HyperMixing and HyperGLU need, without a GPU.

``python -m benchmarks.kernel_resources`` compiles each kernel ahead of time, for
sm_80 and sm_90, every dtype and a few head widths, and prints as Markdown what the
machine code takes of a multiprocessor: registers a thread, shared memory a block,
and the stack a thread, which is where spilled registers would go. Then it prints the
bytes that the kernels move, from their block sizes. It fails if anything spills.
HyperGLU's kernels are those named ``hyperglu_``.
"""

import argparse
import itertools
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hyperconformer.ops.backend import is_interpreted
from hyperconformer.ops.hyperglu import triton_kernels as hyperglu_kernels
from hyperconformer.ops.hyperglu import triton_path as hyperglu_path
from hyperconformer.ops.hypermixing import triton_kernels, triton_path

KERNELS = (
    "mix",
    "reduce",
    "generate",
    "expand",
    "expand_backward",
    "reduce_backward",
)
HYPERGLU_KERNELS = (
    "hyperglu_forward",
    "hyperglu_backward_queries",
    "hyperglu_backward_keys",
    "hyperglu_backward_mixes",
)
CAPABILITIES = (80, 90)
HEAD_WIDTHS = (16, 18, 32, 64, 128)
DTYPES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
}
HYPERGLU_WIDTHS = {torch.bfloat16: (18, 64, 128), torch.float32: (18, 64)}
"""The widest heads, and some that fill no block; float16 is multiplied as bfloat16."""

SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}
"""The most that one block can have, in bytes, by compute capability."""

# What the arguments of a kernel are where they are no pointers to float32.
TYPES = {
    "scale": "fp32",
    "padding": "*u8",
    "starts": "*i64",
    **dict.fromkeys(
        ["rows", "length", "width", "span", "span_stride", "grad_stride"], "i32"
    ),
    **dict.fromkeys(["spans", "columns"], "i32"),
    "born": "*i64",
    "norm_eps": "fp32",
    **dict.fromkeys(["frames", "past", "slots"], "i32"),
}
OF_TOKENS_DTYPE = {"tokens", "grad_out", "grad_tokens", "out"}
HYPERGLU_OF_TOKENS_DTYPE = {"q", "k", "v", "grad_q", "grad_k", "grad_v"}


class Resources(NamedTuple):
    """What one compiled kernel takes.

    Arguments
    ---------
    registers : int
        Of each thread.
    stack : int
        Bytes of each thread, where spilled registers go.
    shared : int
        Bytes of shared memory of each block.
    warps : int
        Of each block.
    """

    registers: int
    stack: int
    shared: int
    warps: int


def compile_kernel(name, dtype, head_width, capability):
    """Compile one kernel with all it can have: padding, codes and biases.

    Arguments
    ---------
    name : str
        One of ``KERNELS`` or ``HYPERGLU_KERNELS``.
    dtype : torch.dtype
        Of the tokens, or of queries, keys and values.
    head_width : int
        d, and e too; of HyperGLU, d and d_v.
    capability : int
        90 for sm_90.

    Returns
    -------
    Resources

    Raises
    ------
    ValueError
        If Triton's interpreter is on, which compiles nothing.
    """
    if is_interpreted():
        raise ValueError("kernels compile only where TRITON_INTERPRET is not set")
    if name in HYPERGLU_KERNELS:
        kernel = getattr(hyperglu_kernels, name.replace("hyperglu_", "") + "_kernel")
        constants = _hyperglu_constants(dtype, head_width)
        of_tokens_dtype = HYPERGLU_OF_TOKENS_DTYPE
    else:
        kernel = getattr(triton_kernels, f"{name}_kernel")
        constants = _constants(kernel, dtype, head_width)
        of_tokens_dtype = OF_TOKENS_DTYPE
    names = {"num_warps", "num_stages", "maxnreg"} & set(constants)
    options = {key: constants.pop(key) for key in names}
    signature = {
        argument: "constexpr"
        if argument in constants
        else _type(argument, dtype, of_tokens_dtype)
        for argument in kernel.arg_names
    }
    # Addresses of tensors, the width D and the span are multiples of 16.
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, (argument, kind) in enumerate(signature.items())
        if kind.startswith("*") or argument in ("width", "span")
    }
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, aligned),
        target=GPUTarget("cuda", capability, 32),
        options=options,
    )
    usage = dump_resource_usage(compiled.asm["cubin"])
    return Resources(
        registers=usage["REG"],
        stack=usage["STACK"] + usage["LOCAL"],
        shared=compiled.metadata.shared,
        warps=options["num_warps"],
    )


def _constants(kernel, dtype, head_width):
    """Compile-time arguments and options of a kernel with all it can have."""
    weights = torch.empty(1, 4 * head_width, head_width + 1, device="meta")
    layers = weights, weights, True, True
    if kernel is triton_kernels.generate_kernel:
        return triton_path.generate_constants(*layers, triton_path.EXACT[dtype])
    if kernel is triton_kernels.mix_kernel:
        switches = ("KEY_BIAS", "QUERY_BIAS", "KEEPS_SUMS", "HAS_PADDING", "IS_PACKED")
        return triton_path.mix_constants(
            dtype,
            head_width,
            *layers,
            CODES="sinusoids",
            **dict.fromkeys(switches, True),
        )
    constants = triton_path.kernel_constants(
        kernel,
        dtype,
        head_width,
        head_width,
        triton_path.span_of(dtype, head_width),
        HAS_PADDING=True,
        IS_PACKED=True,
        CODES="sinusoids",
        HAS_BIAS=True,
    )
    return {**constants, "LAST_ROW": True}


def _hyperglu_constants(dtype, head_width):
    """The same of HyperGLU's kernels: both mixings, of the highest rank, a past."""
    return hyperglu_path.kernel_constants(
        WIDTH=head_width,
        VALUE_WIDTH=head_width,
        RANK1=hyperglu_path.MAX_RANK,
        RANK2=hyperglu_path.MAX_RANK,
        GLU=True,
        NORMALISED=True,
        HAS_BORN=True,
        PRECISION="ieee" if dtype == torch.float32 else "tf32",
    )


def _type(argument, dtype, of_tokens_dtype):
    """Triton's name of the type of an argument."""
    if argument in TYPES:
        return TYPES[argument]
    if argument == "out" and dtype == torch.float16:
        return "*fp32"
    return "*" + (DTYPES[dtype] if argument in of_tokens_dtype else "fp32")


def dump_resource_usage(cubin):
    """What ``cuobjdump`` says of machine code.

    Arguments
    ---------
    cubin : bytes
        Of one kernel.

    Returns
    -------
    dict of str to int
        ``REG``, ``STACK``, ``LOCAL`` and others.
    """
    folder = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        dump = subprocess.run(
            [folder / "cuobjdump", "--dump-resource-usage", file.name],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    return {key: int(value) for key, value in re.findall(r"([A-Z]+):(\d+)", dump)}


def moved_bytes(batch, length, heads, head_width, dtype):
    """What forward moves between the memory and the chip, by what it is.

    Every tensor counts once for each kernel that reads or writes it: what several
    programs read again comes out of the cache. Position codes are sinusoids, which
    are computed.

    Arguments
    ---------
    batch : int
        B.
    length : int
        T.
    heads : int
        H.
    head_width : int
        d, and e too; k is 4 d.
    dtype : torch.dtype
        Of the tokens.

    Returns
    -------
    dict of str to int
        ``floor``: tokens read twice and the output written once. ``sums``: what one
        program for a head of an utterance writes for backward, or what *reduce* writes
        for each span and *generate* reads, and what *generate* writes and *expand*
        reads. ``weights``: those of all kernels.
    """
    numbers = batch * length * heads * head_width
    out_bytes = max(dtype.itemsize, 4 if dtype == torch.float16 else 0)
    passes = 1
    if not triton_path.fits_one_program(batch, length, heads, head_width):
        spans = triton.cdiv(length, triton_path.span_of(dtype, head_width))
        passes = 2 * spans + 2
    matrix = 4 * heads * head_width * (head_width + 1)
    return {
        "floor": numbers * (2 * dtype.itemsize + out_bytes),
        "sums": batch * matrix * passes,
        "weights": 2 * matrix + 2 * 4 * matrix,
    }


def hyperglu_moved_bytes(batch, length, heads, window, dtype):
    """What HyperGLU's forward moves, by what it is, for the widths of its mixer.

    Those are, of D = 32 H: d = D / 8 H, d_v = D / H, both mixings of rank 8. Every
    tensor counts once: the keys of a window come out of the cache again.

    Arguments
    ---------
    batch : int
        B.
    length : int
        T.
    heads : int
        H.
    window : int
        L.
    dtype : torch.dtype
        Of queries, keys and values.

    Returns
    -------
    dict of str to int
        ``floor``: queries, keys and values read once, outputs (float32) written once.
        ``rows``: controls read, row summaries and sizes written. ``weights``: the
        mixings. ``window``: what is *not* moved, all scores once in float32.
    """
    rows, rank = batch * length * heads, 8
    return {
        "floor": rows * ((2 * 2 * 4 + 32) * dtype.itemsize + 4 * 32),
        "rows": rows * 4 * (3 * 2 * rank + 1),
        "weights": 4 * 3 * heads * (2 * rank + 1) * window,
        "window": 4 * 2 * rows * min(window, length),
    }


def print_resources(head_widths, capabilities):
    """Compile every kernel and print its line of the table.

    Arguments
    ---------
    head_widths : iterable of int
        d.
    capabilities : iterable of int
        Compute capabilities, 90 for sm_90.

    Returns
    -------
    list of str
        The kernels that spill, or that no multiprocessor has the memory for.
    """
    print("| target | d | tokens | kernel | warps | registers | shared | spilled |")
    print("|---|---|---|---|---|---|---|---|")
    failed = []
    for case in every_case(head_widths, capabilities):
        capability, width, dtype, name = case
        took = compile_kernel(name, dtype, width, capability)
        print(row(case, took), flush=True)
        if took.stack or took.shared > SHARED_MEMORY[capability]:
            failed.append(row(case, took))
    return failed


def every_case(head_widths=HEAD_WIDTHS, capabilities=CAPABILITIES):
    """What there is to compile.

    Arguments
    ---------
    head_widths : iterable of int
        d, of HyperGLU those in ``HYPERGLU_WIDTHS``.
    capabilities : iterable of int
        Compute capabilities.

    Returns
    -------
    list of tuple
        Capability, head width, dtype, kernel.
    """
    hypermixing = [
        case
        for case in itertools.product(capabilities, head_widths, DTYPES, KERNELS)
        if case[3] != "mix" or case[1] <= triton_path.MAX_WIDTH_OF_ONE
    ]
    hyperglu = [
        (capability, width, dtype, name)
        for capability, (dtype, widths) in itertools.product(
            capabilities, HYPERGLU_WIDTHS.items()
        )
        for width in widths
        if width in head_widths
        for name in HYPERGLU_KERNELS
    ]
    return [*hypermixing, *hyperglu]


def row(case, resources):
    """One line of the table.

    Arguments
    ---------
    case : tuple
        Capability, head width, dtype, kernel.
    resources : Resources
        What it takes.

    Returns
    -------
    str
    """
    capability, width, dtype, name = case
    cells = f"sm_{capability}", width, DTYPES[dtype], name
    cells += resources.warps, resources.registers, resources.shared, resources.stack
    return f"| {' | '.join(map(str, cells))} |"


def print_moved_bytes():
    """Print the bytes that forward moves, against the floor, for common sizes."""
    columns = "B x T", "H x d", "tokens", "floor, MB", "sums / floor", "weights / floor"
    print(f"| {' | '.join(columns)} | moved / floor |")
    print("|---|---|---|---|---|---|---|")
    sizes = (8, 1000), (32, 1000), (8, 3000), (1, 10_000)
    cases = itertools.product(sizes, ((8, 18), (8, 32), (8, 64)), DTYPES)
    for (batch, length), (heads, width), dtype in cases:
        moved = moved_bytes(batch, length, heads, width, dtype)
        floor = moved["floor"]
        parts = [moved[key] / floor for key in ("sums", "weights")]
        percents = " | ".join(f"{part:.1%}" for part in parts)
        print(
            f"| {batch} x {length} | {heads} x {width} | {DTYPES[dtype]} "
            f"| {floor / 1e6:.1f} | {percents} | {1 + sum(parts):.2f} |"
        )


def print_hyperglu_moved_bytes():
    """Print the bytes that HyperGLU's forward moves, for common sizes."""
    print("| HyperGLU, B x T | window | dtype | floor, MB | rows | weights | scores |")
    print("|---|---|---|---|---|---|---|")
    sizes = itertools.product(((8, 1000), (1, 10_000)), (64, 256), HYPERGLU_WIDTHS)
    for (batch, length), window, dtype in sizes:
        moved = hyperglu_moved_bytes(batch, length, 8, window, dtype)
        floor = moved["floor"]
        parts = [moved[key] / floor for key in ("rows", "weights", "window")]
        print(
            f"| {batch} x {length} | {window} | {DTYPES[dtype]} | {floor / 1e6:.1f} "
            f"| {parts[0]:.0%} | {parts[1]:.1%} | {parts[2]:.0%}, not moved |"
        )


def main():
    """Print both tables; the exit status says whether all kernels are sound."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--head-widths", type=int, nargs="+", default=HEAD_WIDTHS)
    parser.add_argument("--capabilities", type=int, nargs="+", default=CAPABILITIES)
    options = parser.parse_args()
    print_moved_bytes()
    print_hyperglu_moved_bytes()
    failed = print_resources(options.head_widths, options.capabilities)
    if failed:
        sys.exit("spilled registers or too much shared memory:\n" + "\n".join(failed))


if __name__ == "__main__":
    main()
