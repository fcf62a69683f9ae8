"""A language model on linear attention, with reversible layers.

Linear and local heads as in :class:`hyperconformer.mixers.linear_attention.
LinearAttention`; reversible layers and chunked feed-forward: Reformer,
https://arxiv.org/abs/2001.04451, section 3.
"""

import contextlib
import functools
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from hyperconformer.mixers.linear_attention import LinearAttention, rotary_codes
from hyperconformer.nn.linear import Linear

_POSITIONS = ("learned", "rotary")


class LinearAttentionTransformerLM(nn.Module):
    """Tokens in, a score for every possible next token out.

    It serves SpeechBrain's ``TransformerLMScorer`` as it is.

    Arguments
    ---------
    num_tokens : int
        Size of the vocabulary.
    dim : int
        Width D of the layers.
    depth : int
        Number of layers.
    max_seq_len : int
        The longest input with learned positions; rotary ones know no longest.
    heads : int
        Number of heads.
    dim_head : int, optional
        Width of a head; None means dim / heads.
    causal : bool
        Whether a token sees only itself and those before it.
    blindspot_size : int
        In causal linear heads, tokens in a bucket; the own bucket is not seen,
        unless it holds one token. Pair it with local heads.
    n_local_attn_heads : int
        How many of the heads attend locally.
    local_attn_window : int
        Tokens in a local window.
    one_kv_head : bool
        Whether all heads share one head of keys and values.
    reversible : bool
        Whether the layers are reversible: then training keeps the activations of
        one layer, however many there are, for one more computation of each.
    ff_chunks : int
        Stretches of time in which the feed-forward is computed one by one.
    ff_mult : int
        Hidden width of the feed-forward over D.
    ff_dropout : float
        Dropout rate in the feed-forward.
    attn_layer_dropout : float
        Dropout rate after the attention.
    emb_dropout : float
        Dropout rate of the embeddings.
    positions : str
        "learned", a table of absolute positions added to the embeddings, or
        "rotary", which turns queries and keys of every layer.

    Raises
    ------
    ValueError
        If an option is out of range.

    Example
    -------
    >>> lm = LinearAttentionTransformerLM(
    ...     num_tokens=20, dim=16, depth=2, max_seq_len=32, heads=4, causal=True
    ... )
    >>> lm(torch.randint(0, 20, (2, 7))).shape
    torch.Size([2, 7, 20])
    """

    def __init__(
        self,
        num_tokens: int,
        dim: int,
        depth: int,
        max_seq_len: int,
        heads: int = 8,
        dim_head: int | None = None,
        causal: bool = False,
        blindspot_size: int = 1,
        n_local_attn_heads: int = 0,
        local_attn_window: int = 128,
        one_kv_head: bool = False,
        reversible: bool = False,
        ff_chunks: int = 1,
        ff_mult: int = 4,
        ff_dropout: float = 0.0,
        attn_layer_dropout: float = 0.0,
        emb_dropout: float = 0.0,
        positions: str = "learned",
    ):
        super().__init__()
        if positions not in _POSITIONS:
            raise ValueError(
                f"unknown positions {positions!r}; known: {', '.join(_POSITIONS)}"
            )
        if min(num_tokens, depth, max_seq_len) < 1:
            raise ValueError(
                "num_tokens, depth and max_seq_len must be >= 1, "
                f"got {num_tokens}, {depth} and {max_seq_len}"
            )
        self.max_seq_len = max_seq_len
        self.reversible = reversible
        self.num_tokens = num_tokens
        self.token_emb = nn.Embedding(num_tokens, dim)
        self.pos_emb = None
        if positions == "learned":
            self.pos_emb = nn.Embedding(max_seq_len, dim)
        self.emb_dropout = nn.Dropout(emb_dropout)
        self.layers = nn.ModuleList(
            LMLayer(
                LinearAttention(
                    dim,
                    heads,
                    causal=causal,
                    blindspot_size=blindspot_size,
                    n_local_attn_heads=n_local_attn_heads,
                    local_attn_window_size=local_attn_window,
                    one_kv_head=one_kv_head,
                    dim_head=dim_head,
                    dropout=attn_layer_dropout,
                ),
                ChunkedFeedForward(dim, ff_mult, ff_chunks, ff_dropout),
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.out = Linear(dim, num_tokens)
        for embedding in filter(None, (self.token_emb, self.pos_emb)):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(
        self, tokens: torch.Tensor, input_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Score every next token.

        Arguments
        ---------
        tokens : torch.Tensor
            (B, T) token numbers, of any integer type; or whole numbers in a floating
            type, which SpeechBrain's scorer hands over.
        input_mask : torch.Tensor, optional
            (B, T) bool, **True = a real token**, as in the reference package. What
            stands elsewhere is never read.

        Returns
        -------
        torch.Tensor
            (B, T, num_tokens) logits.

        Raises
        ------
        ValueError
            If a shape or dtype is wrong, or the input is longer than the table of
            positions.
        """
        self._check_inputs(tokens, input_mask)
        padding_mask = None
        if input_mask is not None:
            padding_mask = ~input_mask
            tokens = tokens.masked_fill(padding_mask, 0)
        x = self.token_emb(tokens.long())
        rotary = None
        if self.pos_emb is not None:
            x = x + self.pos_emb.weight[: x.shape[1]]
        else:
            first: Any = self.layers[0]
            width = first.attention.dim_head
            rotary = rotary_codes(x.shape[1], width, device=x.device, dtype=x.dtype)
        x = self._run_layers(self.emb_dropout(x), padding_mask, rotary)
        return self.out(self.norm(x))

    def _run_layers(self, x, padding_mask, rotary):
        """Residual branches one after the other, on one stream or on two."""
        branches = []
        for layer in self.layers:
            attend = functools.partial(
                layer.attend, padding_mask=padding_mask, rotary=rotary
            )
            branches += [attend, layer.feed]
        if not self.reversible:
            for branch in branches:
                x = x + branch(x)
            return x
        parameters = list(self.layers.parameters())
        return sum(reversible_residuals(branches, parameters, x, x)) / 2

    def _check_inputs(self, tokens, input_mask):
        if tokens.dim() != 2 or tokens.shape[1] == 0:
            raise ValueError(
                f"tokens must have shape (B, T) with T >= 1, got {tuple(tokens.shape)}"
            )
        if self.pos_emb is not None and tokens.shape[1] > self.max_seq_len:
            raise ValueError(
                f"learned positions end at max_seq_len = {self.max_seq_len} tokens, "
                f"got {tokens.shape[1]}"
            )
        if input_mask is not None and (
            input_mask.dtype != torch.bool or input_mask.shape != tokens.shape
        ):
            raise ValueError(
                f"input_mask must be bool of shape {tuple(tokens.shape)}, True = real, "
                f"got {input_mask.dtype} of shape {tuple(input_mask.shape)}"
            )


class LMLayer(nn.Module):
    """The two residual branches of a pre-norm Transformer layer.

    Arguments
    ---------
    attention : LinearAttention
        Mixes tokens.
    feed_forward : nn.Module
        (B, T, D) to (B, T, D), token by token.
    """

    def __init__(self, attention, feed_forward):
        super().__init__()
        self.attention = attention
        self.feed_forward = feed_forward
        self.attention_norm = nn.LayerNorm(attention.d_model)
        self.feed_forward_norm = nn.LayerNorm(attention.d_model)

    def attend(self, x, padding_mask=None, rotary=None):
        """The attention branch, (B, T, D) to (B, T, D)."""
        return self.attention.attend(
            self.attention_norm(x), key_padding_mask=padding_mask, rotary=rotary
        )

    def feed(self, x):
        """The feed-forward branch, (B, T, D) to (B, T, D)."""
        return self.feed_forward(self.feed_forward_norm(x))


class ChunkedFeedForward(nn.Module):
    """Linear, GELU, Linear, computed for one stretch of time after the other.

    Arguments
    ---------
    dim : int
        Width D.
    mult : int
        Hidden width over D.
    chunks : int
        Number of stretches; the numbers are the same for any.
    dropout : float
        Dropout rate of the hidden layer.

    Raises
    ------
    ValueError
        If ``chunks`` or ``mult`` is below 1.
    """

    def __init__(self, dim, mult=4, chunks=1, dropout=0.0):
        super().__init__()
        if chunks < 1 or mult < 1:
            raise ValueError(
                f"ff_chunks and ff_mult must be >= 1, got {chunks} and {mult}"
            )
        self.chunks = chunks
        self.ffn = nn.Sequential(
            Linear(dim, mult * dim),
            nn.GELU(),
            nn.Dropout(dropout),
            Linear(mult * dim, dim),
        )

    def forward(self, x):
        """(B, T, D) in, (B, T, D) out."""
        return torch.cat(
            [self.ffn(part) for part in x.chunk(self.chunks, dim=1)], dim=1
        )


def reversible_residuals(branches, parameters, x1, x2):
    """Run residual branches on two streams, keeping only the last activations.

    Each branch f makes (x2, x1 + f(x2)) of (x1, x2), which two branches in a row turn
    into the reversible layer of RevNets (arXiv:1707.04585, equation 6). The backward
    pass undoes the branches one by one, with the same dropout, and differentiates
    each as it goes.

    Arguments
    ---------
    branches : list of callable
        Each from (B, T, D) to (B, T, D).
    parameters : list of torch.Tensor
        The parameters of all branches; no others get a gradient.
    x1 : torch.Tensor
        (B, T, D) the first stream.
    x2 : torch.Tensor
        (B, T, D) the second stream.

    Returns
    -------
    tuple of torch.Tensor
        The two streams after all branches, each (B, T, D).
    """
    trained = [p for p in parameters if p.requires_grad]
    return _Reversible.apply(branches, x1, x2, *trained)


class _Reversible(torch.autograd.Function):
    @staticmethod
    def forward(ctx, branches, x1, x2, *parameters):
        ctx.branches, ctx.parameters, ctx.surroundings = branches, parameters, []
        for branch in branches:
            ctx.surroundings.append(_Surroundings(x2.device))
            x1, x2 = x2, x1 + branch(x2)
        ctx.save_for_backward(x1, x2)
        return x1, x2

    @staticmethod
    @once_differentiable
    def backward(ctx, grad1, grad2):
        x1, x2 = ctx.saved_tensors
        totals = [None] * len(ctx.parameters)
        for branch, surroundings in reversed(list(zip(ctx.branches, ctx.surroundings))):
            x1 = x1.detach().requires_grad_()
            with torch.enable_grad(), surroundings.again():
                change = branch(x1).to(x2.dtype)
            grad_x, *grads = torch.autograd.grad(
                change, (x1, *ctx.parameters), grad2, allow_unused=True
            )
            totals = [_add(total, grad) for total, grad in zip(totals, grads)]
            x1, x2 = x2 - change.detach(), x1
            grad1, grad2 = grad2, grad1 + grad_x
        return (None, grad1, grad2, *totals)


def _add(total, grad):
    """The sum of two gradients of which either may be None."""
    if total is None or grad is None:
        return grad if total is None else total
    return total + grad


class _Surroundings:
    """Random states and autocast, so that a branch can run again as it ran."""

    def __init__(self, device):
        self.device = device
        self.cpu_state = torch.get_rng_state()
        self.cuda_state = None
        if device.type == "cuda":
            self.cuda_state = torch.cuda.get_rng_state(device)
        self.autocast = torch.is_autocast_enabled(device.type)
        self.autocast_dtype = torch.get_autocast_dtype(device.type)

    @contextlib.contextmanager
    def again(self):
        """The same surroundings, and afterwards those of before."""
        cuda = [self.device] if self.cuda_state is not None else []
        autocast = torch.autocast(
            self.device.type, dtype=self.autocast_dtype, enabled=self.autocast
        )
        with torch.random.fork_rng(devices=cuda), autocast:
            torch.set_rng_state(self.cpu_state)
            if self.cuda_state is not None:
                torch.cuda.set_rng_state(self.cuda_state, self.device)
            yield
