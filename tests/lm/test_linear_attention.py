"""The language model: reversible layers, chunked feed-forward, padding, decoding."""

import weakref

import pytest
import torch

from hyperconformer.lm.linear_attention import (
    ChunkedFeedForward,
    LinearAttentionTransformerLM,
    reversible_residuals,
)

TOKENS = 11


def model(**options):
    settings = {
        "num_tokens": TOKENS,
        "dim": 16,
        "depth": 2,
        "max_seq_len": 40,
        "heads": 4,
        "causal": True,
        "blindspot_size": 4,
        "n_local_attn_heads": 2,
        "local_attn_window": 5,
        "one_kv_head": True,
    }
    return LinearAttentionTransformerLM(**{**settings, **options})


@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize("reversible", [False, True])
def test_any_length(reversible, positions):
    lm = model(reversible=reversible, ff_chunks=2, positions=positions)
    for frames in (1, 2, 7, 40):
        logits = lm(torch.randint(TOKENS, (2, frames)))
        assert logits.shape == (2, frames, TOKENS)
        assert logits.isfinite().all()


def test_seed_quick_start():
    """The published comment says width 512; it returns logits over the tokens."""
    lm = LinearAttentionTransformerLM(
        num_tokens=2000,
        dim=64,
        heads=8,
        depth=2,
        max_seq_len=1024,
        causal=True,
        blindspot_size=64,
        n_local_attn_heads=4,
        local_attn_window=128,
        one_kv_head=True,
        reversible=True,
        ff_chunks=2,
    )
    with torch.no_grad():
        assert lm(torch.randint(0, 2000, (1, 1023))).shape == (1, 1023, 2000)


@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize("reversible", [False, True])
def test_the_future_is_not_seen(reversible, positions):
    lm = model(reversible=reversible, positions=positions).double()
    tokens = torch.randint(TOKENS, (1, 13))
    logits = lm(tokens)
    for cut in range(1, 13):
        changed = tokens.clone()
        changed[:, cut:] = (changed[:, cut:] + 1) % TOKENS
        torch.testing.assert_close(lm(changed)[:, :cut], logits[:, :cut])
        assert not torch.allclose(lm(changed)[:, cut:], logits[:, cut:])


@pytest.mark.parametrize("causal", [False, True])
def test_padding_is_not_read(causal):
    lm = model(causal=causal).double()
    tokens = torch.randint(TOKENS, (2, 13))
    real = torch.ones(2, 13, dtype=torch.bool)
    real[1, 9:] = False
    tokens[1, 9:] = -1  # no token at all
    logits = lm(tokens, input_mask=real)
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[:1], lm(tokens[:1]))
    torch.testing.assert_close(logits[1:, :9], lm(tokens[1:, :9]))


def test_order_matters():
    for positions in ("learned", "rotary"):
        lm = model(n_local_attn_heads=0, blindspot_size=1, positions=positions)
        ab, ba = lm(torch.tensor([[1, 2, 3]])), lm(torch.tensor([[2, 1, 3]]))
        assert (ab[:, -1] - ba[:, -1]).abs().max() > 1e-5


def plain_reversible(branches, x1, x2):
    """The same layers under ordinary differentiation."""
    for attend, feed in zip(branches[::2], branches[1::2]):
        x1 = x1 + attend(x2)
        x2 = x2 + feed(x1)
    return x1, x2


def test_reversible_gradients_equal_ordinary_ones():
    lm = model(depth=3, reversible=True).double()
    lm.layers[1].feed_forward.ffn[0].weight.requires_grad_(False)
    branches = [f for layer in lm.layers for f in (layer.attend, layer.feed)]
    parameters = [p for p in lm.layers.parameters() if p.requires_grad]
    x1, x2 = torch.randn(2, 2, 9, 16, dtype=torch.float64).requires_grad_()
    weights = torch.randn(2, 2, 9, 16, dtype=torch.float64)
    results = []
    for path in (
        reversible_residuals(branches, list(lm.layers.parameters()), x1, x2),
        plain_reversible(branches, x1, x2),
    ):
        loss = sum((w * y).sum() for w, y in zip(weights, path))
        results.append((path, torch.autograd.grad(loss, [x1, x2, *parameters])))
    (y, grads), (y_plain, grads_plain) = results
    torch.testing.assert_close(y, y_plain, rtol=0, atol=1e-12)
    for got, expected in zip(grads, grads_plain):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


def test_reversible_model_gradcheck():
    lm = model(depth=2, reversible=True).double()
    tokens = torch.randint(TOKENS, (1, 6))
    weight = lm.token_emb.weight

    def loss(rows):
        embedded = torch.func.functional_call(lm, {"token_emb.weight": rows}, (tokens,))
        return embedded.square().mean()

    assert torch.autograd.gradcheck(loss, weight, fast_mode=True)


def test_reversible_dropout_is_repeated_in_the_backward_pass():
    """With other dropout than forward, the gradient would not be that of the loss."""
    lm = model(
        reversible=True, ff_dropout=0.3, attn_layer_dropout=0.3, emb_dropout=0.3
    ).double()
    tokens = torch.randint(TOKENS, (2, 9))
    bias = lm.layers[0].feed_forward.ffn[0].bias
    direction = torch.randn_like(bias)

    def loss():
        torch.manual_seed(3)
        return lm(tokens).square().sum()

    loss().backward()
    with torch.no_grad():
        bias += 1e-6 * direction
        above = loss()
        bias -= 2e-6 * direction
        below = loss()
    numeric = (above - below) / 2e-6
    torch.testing.assert_close(
        (bias.grad * direction).sum(), numeric, rtol=1e-6, atol=0
    )


def test_backward_leaves_the_random_numbers_alone():
    lm = model(reversible=True, ff_dropout=0.3)
    loss = lm(torch.randint(TOKENS, (2, 9))).sum()
    state = torch.get_rng_state()
    loss.backward()
    assert torch.equal(torch.get_rng_state(), state)


def peak_saved_bytes(lm, tokens):
    """The most that autograd holds at any moment of a training step."""
    alive, peak = 0, 0

    class Held:
        def __init__(self, tensor):
            self.tensor = tensor

    def release(size):
        nonlocal alive
        alive -= size

    def pack(tensor):
        nonlocal alive, peak
        if isinstance(tensor, torch.nn.Parameter) or tensor.dim() < 3:
            return tensor
        held, size = Held(tensor), tensor.numel() * tensor.element_size()
        weakref.finalize(held, release, size)
        alive += size
        peak = max(peak, alive)
        return held

    def unpack(held):
        return held.tensor if isinstance(held, Held) else held

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        loss = lm(tokens).logsumexp(-1).sum()
        loss.backward()
    return peak


def test_reversible_layers_save_memory():
    tokens = torch.randint(TOKENS, (2, 40))
    shallow, deep = (
        [
            peak_saved_bytes(model(depth=depth, reversible=reversible), tokens)
            for reversible in (True, False)
        ]
        for depth in (2, 8)
    )
    assert deep[0] == shallow[0]
    assert deep[1] > 3 * shallow[1]
    assert deep[0] < deep[1] / 6


def test_reversible_under_autocast():
    lm = model(reversible=True, depth=3)
    tokens = torch.randint(TOKENS, (2, 20))

    def gradients():
        lm.zero_grad()
        lm(tokens).float().logsumexp(-1).mean().backward()
        return [p.grad for p in lm.parameters()]

    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = lm(tokens).float().logsumexp(-1).mean()
    loss.backward()
    low = [p.grad for p in lm.parameters()]
    for got, expected in zip(low, gradients()):
        assert (got - expected).norm() < 0.05 * expected.norm() + 1e-4


def test_feed_forward_chunks_give_the_same_numbers():
    whole = ChunkedFeedForward(8, chunks=1).double()
    x = torch.randn(2, 7, 8, dtype=torch.float64)
    for chunks in (2, 3, 7, 50):
        parts = ChunkedFeedForward(8, chunks=chunks).double()
        parts.load_state_dict(whole.state_dict())
        torch.testing.assert_close(parts(x), whole(x))


@pytest.mark.parametrize("reversible", [False, True])
def test_learns_a_repeating_sequence(reversible):
    lm = model(dim=32, reversible=reversible, ff_chunks=2)
    tokens = torch.tensor([1, 5, 2, 8, 3, 9]).repeat(6)[None]
    optimizer = torch.optim.Adam(lm.parameters(), lr=3e-3)
    losses = []
    for _ in range(50):
        loss = torch.nn.functional.cross_entropy(lm(tokens[:, :-1])[0], tokens[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 2 and losses[-1] < 0.3


def test_serves_the_searcher_of_speechbrain():
    decoders = pytest.importorskip("speechbrain.decoders")
    from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
    from speechbrain.nnet.linear import Linear

    lm = model()
    asr = TransformerASR(
        tgt_vocab=TOKENS,
        input_size=7,
        d_model=16,
        nhead=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        d_ffn=16,
    ).eval()
    scorer = decoders.ScorerBuilder(
        full_scorers=[decoders.TransformerLMScorer(language_model=lm)],
        weights={"transformerlm": 1e3},
    )
    searcher = decoders.S2STransformerBeamSearcher(
        modules=[asr, Linear(input_size=16, n_neurons=TOKENS)],
        bos_index=1,
        eos_index=2,
        min_decode_ratio=0.0,
        max_decode_ratio=1.0,
        beam_size=3,
        scorer=scorer,
    )
    # A model that only ever continues the alphabet, and ends after token 6.
    with torch.no_grad():
        for parameter in lm.layers.parameters():
            parameter.zero_()
        lm.pos_emb.weight.zero_()
        lm.token_emb.weight.copy_(torch.eye(TOKENS, 16))
        lm.norm.weight.fill_(1.0)
        lm.out.weight.zero_()
        lm.out.bias.zero_()
        for token, following in [(1, 3), (3, 4), (4, 5), (5, 6), (6, 2)]:
            lm.out.weight[following, token] = 5.0
    with torch.no_grad():
        encoded = asr.encode(torch.randn(2, 40, 7), torch.ones(2))
        hypotheses, *_ = searcher(encoded, torch.ones(2))
    assert [list(map(int, h)) for h in hypotheses] == [[3, 4, 5, 6]] * 2


def test_scorer_hands_over_floating_tokens():
    lm, tokens = model(), torch.randint(TOKENS, (2, 6))
    assert torch.equal(lm(tokens.float()), lm(tokens))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"positions": "axial"}, "known: learned, rotary"),
        ({"depth": 0}, "must be >= 1"),
        ({"ff_chunks": 0}, "ff_chunks and ff_mult"),
        ({"n_local_attn_heads": 5}, "between 0 and 4"),
    ],
)
def test_constructor_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        model(**options)


def test_call_refusals():
    lm = model()
    with pytest.raises(ValueError, match="T >= 1"):
        lm(torch.zeros(2, 0, dtype=torch.long))
    with pytest.raises(ValueError, match="max_seq_len = 40 tokens, got 41"):
        lm(torch.zeros(2, 41, dtype=torch.long))
    assert model(positions="rotary")(torch.zeros(1, 41).long()).shape[1] == 41
    with pytest.raises(ValueError, match="True = real"):
        lm(torch.zeros(2, 5).long(), input_mask=torch.ones(2, 5))
