"""HyperMixing as its papers write it: the matrices W1 and W2 are made explicitly.

HyperMixer, https://arxiv.org/abs/2203.03691, equations 1 to 3 and figure 2;
several heads: HyperConformer, https://arxiv.org/abs/2305.18281.
"""

import torch
from torch.nn.functional import gelu


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
    """Mix tokens head by head; see :func:`hyperconformer.ops.hypermixing.hypermixing`.

    Arguments
    ---------
    values : torch.Tensor
        (B, N, D) what is mixed.
    keys : torch.Tensor
        (B, N, D) what the first hypernetwork reads.
    queries : torch.Tensor
        (B, M, D) what the second hypernetwork reads.
    key_hypernet : Hypernet
        Makes W1 of shape (B, N, k) for each head.
    query_hypernet : Hypernet
        Makes W2 of shape (B, M, k) for each head.
    codes : torch.Tensor, optional
        (>= max(N, M), D) position codes, row t for token t.
    scale : float
        Factor on keys and queries before the codes are added.
    key_padding_mask : torch.Tensor, optional
        (B, N) bool, True = padding.
    query_padding_mask : torch.Tensor, optional
        (B, M) bool, True = padding.

    Returns
    -------
    torch.Tensor
        (B, M, D) in the dtype of ``values``; 0 where queries are padding.
    """
    values = _fill_padding(values, key_padding_mask)
    key_information = _information(keys, key_padding_mask, codes, scale)
    query_information = _information(queries, query_padding_mask, codes, scale)
    num_heads = key_hypernet.fc1_weights.shape[0]
    head_outputs = []
    for head in range(num_heads):
        v = values.chunk(num_heads, dim=-1)[head]
        w1 = _generate(key_information, key_hypernet, head)
        w1 = _fill_padding(w1, key_padding_mask)
        w2 = _generate(query_information, query_hypernet, head)
        w2 = _fill_padding(w2, query_padding_mask)
        hidden = gelu(w1.transpose(1, 2) @ v)
        head_outputs.append(w2 @ hidden)
    return torch.cat(head_outputs, dim=-1)


def _fill_padding(tokens, padding_mask):
    """Zero the padded rows of (B, T, any)."""
    if padding_mask is None:
        return tokens
    return tokens.masked_fill(padding_mask.unsqueeze(-1), 0.0)


def _information(tokens, padding_mask, codes, scale):
    """What a hypernetwork reads: (B, T, D) scaled tokens plus position codes."""
    information = scale * _fill_padding(tokens, padding_mask)
    if codes is not None:
        information = information + codes[: tokens.shape[1]].to(tokens.dtype)
    return information


def _generate(information, hypernet, head):
    """One head's rows of W, (B, T, k), from that head's slice of (B, T, D)."""
    num_heads = hypernet.fc1_weights.shape[0]
    z = information.chunk(num_heads, dim=-1)[head]
    a = z @ hypernet.fc1_weights[head].T
    if hypernet.fc1_biases is not None:
        a = a + hypernet.fc1_biases[head]
    w = gelu(a) @ hypernet.fc2_weights[head].T
    if hypernet.fc2_biases is not None:
        w = w + hypernet.fc2_biases[head]
    return w
