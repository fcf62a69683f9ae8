"""*Generate*, the step of HyperMixing that sees no tokens, only sums over them::

    M = GELU(G1 S + c1 s)  (k, d),   R = G2' M  (e, d),   r = c2' M  (1, d)

The letters are those of :mod:`.torch_path`.
"""

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import gelu

gelu_ = torch.ops.aten.gelu_
gelu_backward = torch.ops.aten.gelu_backward.grad_input

BLOCK_SIZE = 256 * 1024
"""Most numbers in a block on a CPU: a few such blocks fit the cache of a core."""


def is_cpu(device):
    """Whether work is to be done in blocks."""
    return device.type == "cpu"


def generate(sums, first, second):
    """From the sums over tokens to the matrix that every query is multiplied with.

    Arguments
    ---------
    sums : torch.Tensor
        (H, e + 1, B, d) S and s; without s, (H, e, B, d).
    first : torch.Tensor
        (H, k, e + 1) G1 and c1 side by side; without c1, (H, k, e).
    second : torch.Tensor
        (H, k, e + 1) G2 and c2 side by side; without c2, (H, k, e).

    Returns
    -------
    torch.Tensor
        (H, e + 1, B, d) R and r; without c2, (H, e, B, d).
    """
    hidden = gelu(torch.bmm(first, sums.flatten(2)))
    mixture = torch.bmm(second.transpose(1, 2), hidden)
    return mixture.unflatten(2, sums.shape[2:])


def generate_backward(sums, first, second, grad_mixture):
    """The gradients of :func:`generate`, whose hidden layer is made again.

    That layer, (H, k, B d), may be far larger than its input: it is made and used up
    in blocks of columns that stay in the cache.

    Arguments
    ---------
    sums, first, second : torch.Tensor
        As :func:`generate` took them.
    grad_mixture : torch.Tensor
        Of its result.

    Returns
    -------
    grad_sums, grad_first, grad_second : torch.Tensor
    """
    columns, grad_mixture = sums.flatten(2), grad_mixture.flatten(2)
    grad_sums = torch.empty_like(columns)
    grad_first, grad_second = torch.zeros_like(first), torch.zeros_like(second)
    for block in column_blocks(columns, first):
        before = torch.bmm(first, columns[..., block])
        grad_out = grad_mixture[..., block]
        grad_second.baddbmm_(gelu(before), grad_out.mT)
        grad = torch.bmm(second, grad_out)
        grad = gelu_backward(grad, before, grad_input=grad)
        grad_first.baddbmm_(grad, columns[..., block].mT)
        grad_sums[..., block] = torch.bmm(first.mT, grad)
    return grad_sums.view(sums.shape), grad_first, grad_second


def column_blocks(columns, first):
    """Slices of the columns (H, e, n) whose hidden layers (H, k, n) fit the cache."""
    heads, hidden, _ = first.shape
    size = columns.shape[2]
    if is_cpu(columns.device):
        size = max(1, BLOCK_SIZE // (heads * hidden))
    return [slice(i, i + size) for i in range(0, columns.shape[2], size)]


class Generate(torch.autograd.Function):
    """:func:`generate` for many chunks; its hidden layer is never kept.

    That layer, (H, k, B N d), is several times as large as the chunks' frames. It is
    made and used up in blocks that stay in the cache, and made again in backward.

    Arguments
    ---------
    sums : torch.Tensor
        (H, e + 1, B N, d) S and s; without s, (H, e, B N, d).
    first : torch.Tensor
        (H, k, e + 1) or (H, k, e).
    second : torch.Tensor
        (H, k, e + 1) or (H, k, e).

    Returns
    -------
    torch.Tensor
        (H, e + 1, B N, d) R and r; without r, (H, e, B N, d).
    """

    @staticmethod
    def forward(ctx, sums, first, second):
        ctx.save_for_backward(sums, first, second)
        columns = sums.flatten(2)
        mixture = sums.new_empty(len(sums), second.shape[2], columns.shape[2])
        for block in column_blocks(columns, first):
            hidden = gelu_(torch.bmm(first, columns[..., block]))
            mixture[..., block] = torch.bmm(second.mT, hidden)
        return mixture.unflatten(2, sums.shape[2:])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_mixture):
        return generate_backward(*ctx.saved_tensors, grad_mixture)
