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


def hypermixing_in_chunks(
    x,
    key_hypernet,
    query_hypernet,
    *,
    chunk=None,
    codes=None,
    padding_mask=None,
    decay=None,
    normalize=False,
    past=None,
):
    """Mix, chunk by chunk, with everything that the chunk sees at hand.

    Arguments and result are those of
    :func:`hyperconformer.ops.hypermixing.hypermixing_in_chunks`, without ``past``.

    Raises
    ------
    ValueError
        If a ``past`` is given.
    """
    if past is not None:
        raise ValueError("the reference has no streaming form: it takes no past")
    num_heads = key_hypernet.fc1_weights.shape[0]
    num_frames = x.shape[1]
    size = num_frames if chunk is None else chunk.chunk_frames
    left = None if chunk is None else chunk.left_chunks
    values = _fill_padding(x, padding_mask)
    information = _information(x, padding_mask, codes, 1.0)
    outputs = []
    for head in range(num_heads):
        v = values.chunk(num_heads, dim=-1)[head]
        w1 = _fill_padding(_generate(information, key_hypernet, head), padding_mask)
        w2 = _fill_padding(_generate(information, query_hypernet, head), padding_mask)
        head_outputs = []
        for start in range(0, num_frames, size):
            end = min(start + size, num_frames)
            first = 0 if left is None else max(0, start - left * size)
            seen = torch.arange(first, end, device=x.device)
            weight = torch.ones(len(x), len(seen), 1, dtype=x.dtype, device=x.device)
            if decay is not None:
                chunks_ago = start // size - seen // size
                weight = weight * decay[head] ** (size * chunks_ago)[:, None]
            if padding_mask is not None:
                weight = _fill_padding(weight, padding_mask[:, first:end])
            mixed = w1[:, first:end].transpose(1, 2) @ (weight * v[:, first:end])
            if normalize:
                mixed = mixed / weight.sum(1, keepdim=True).clamp(min=1)
            head_outputs.append(w2[:, start:end] @ gelu(mixed))
        outputs.append(torch.cat(head_outputs, dim=1))
    return torch.cat(outputs, dim=-1), None


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
