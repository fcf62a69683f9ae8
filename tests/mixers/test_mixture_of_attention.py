"""Mixture-of-attention: the sensible goldens, and each published fault mended.

``moa_one_expert_*`` and ``moa_repaired_*`` are matched. The other ``moa_*`` cases hold
two faults of the published package (tokens gathered from other utterances, keys and
values split across experts); a test rebuilds those faults around our module, lands on
these numbers, and so shows that ours differs by nothing else.
"""

import pytest
import torch

from hyperconformer.core.masks import ChunkRule, lengths_to_padding_mask
from hyperconformer.mixers import mixture_of_attention as moa
from hyperconformer.mixers.mixture_of_attention import (
    CoordinateDescentRouter,
    LocalMultiHeadAttention,
    MixtureOfAttention,
    MixtureOfAttentionMixer,
    MixtureOfAutoregressiveAttention,
)
from hyperconformer.ops.coordinate_descent import route, route_causally, routing
from tests.goldens import load_golden, relative_error, section

SELF_AND_CROSS = [
    "moa_one_expert_mask",
    "moa_repaired_self_mask",
    "moa_repaired_cross_masks_avg",
    "moa_repaired_self_local_mask_avg",
]
AUTOREGRESSIVE = ["moa_one_expert_autoreg", "moa_repaired_autoreg"]
FAULTY = ["moa_self_mask", "moa_cross_masks_avg", "moa_self_local_mask_avg"]


def from_golden(folder, name, dtype=torch.float64):
    """Our module with a golden's parameters, the golden's inputs and arrays."""
    config, arrays = load_golden(folder, name, dtype)
    options = dict(config["init"])
    del options["use_triton"], options["flash_attn"]
    if "Autoregressive" in config["reference"]:
        module = MixtureOfAutoregressiveAttention(**options, query_routing="window")
    else:
        module = MixtureOfAttention(**options)
    # Rotary frequencies are constants here.
    parameters = section(arrays, "param")
    parameters = {k: v for k, v in parameters.items() if "rel_pos" not in k}
    module.to(dtype).load_state_dict(parameters, strict=True)
    inputs = section(arrays, "in")
    for value in inputs.values():
        value.requires_grad_(value.is_floating_point())
    del inputs["w"]
    return module, inputs, arrays


def published_rotation(window):
    """Rotary codes as published: queries, turned first, stand a window too late."""
    turned = []

    def rotate(x, positions):
        turned.append(x)
        if len(turned) % 2:
            positions = positions + window
        width = x.shape[-1]
        powers = torch.arange(0, width, 2) / width
        # In float32, as published: their rounding shows at 1e-8.
        angles = positions.unsqueeze(-1) * (1 / 10000**powers).double()
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

    return rotate


def recorded_routes(monkeypatch):
    """A list that gathers every route that is made from now on."""
    routes = []
    take = routing.take

    def record(*arguments):
        routes.append(take(*arguments))
        return routes[-1]

    monkeypatch.setattr(routing, "take", record)
    return routes


def kept_sets(index, keep):
    """For each row the set of its kept positions."""
    rows = zip(index.flatten(0, -2), keep.flatten(0, -2))
    return [set(i[k].tolist()) for i, k in rows]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-4)]
)
@pytest.mark.parametrize("name", SELF_AND_CROSS + AUTOREGRESSIVE)
def test_golden(monkeypatch, goldens_folder, name, dtype, tolerance):
    module, inputs, arrays = from_golden(goldens_folder, name, dtype)
    if name == "moa_repaired_self_local_mask_avg":
        # This case holds the fault of the non-causal rotary, i - j + w.
        monkeypatch.setattr(moa, "rotate_half", published_rotation(8))
    y = module(**inputs)
    assert relative_error(y, arrays["out/y"]) < tolerance
    (y * arrays["in/w"]).sum().backward()
    parameters = dict(module.named_parameters())
    gradients = section(arrays, "grad")
    for key, expected in gradients.items():
        got = inputs[key].grad if key in inputs else parameters[key].grad
        assert relative_error(got, expected) < tolerance, key
    assert {k for k, p in parameters.items() if p.grad is not None} <= set(gradients)


@pytest.mark.parametrize("name", SELF_AND_CROSS + AUTOREGRESSIVE)
def test_golden_routes(monkeypatch, goldens_folder, name):
    module, inputs, arrays = from_golden(goldens_folder, name)
    routes = recorded_routes(monkeypatch)
    module(**inputs)
    kinds = ["query", "key_value"]
    if name in AUTOREGRESSIVE:
        kinds.reverse()
    for kind, got in zip(kinds, routes):
        index = arrays[f"out/aux_{kind}_indices"]
        weight = arrays[f"out/aux_{kind}_scores"]
        if name in AUTOREGRESSIVE and kind == "key_value":
            # Ours count from the start of what each of 4 windows may see.
            got = got._replace(index=got.index.flatten(0, 1))
            absent = torch.tensor([3, 2, 1, 0, 3, 2, 1, 0]) * module.routed_window_size
            got = got._replace(index=got.index - absent[:, None, None])
        assert kept_sets(got.index, got.keep) == kept_sets(index, weight > 0)
        ones = got.weight[got.keep]
        torch.testing.assert_close(ones, torch.ones_like(ones), rtol=0, atol=1e-15)


def with_published_faults(monkeypatch, module, arrays, window):
    """Put both multi-expert faults into our module, in the golden's slot order."""
    orders = [arrays["out/aux_query_indices"], arrays["out/aux_key_value_indices"]]
    monkeypatch.setattr(routing, "select_tokens", lambda *_: orders.pop(0))
    # Another utterance's padding is read too: it must not be cleaned away.
    monkeypatch.setattr(moa, "clean_tokens", lambda name, x, mask, dim: (x, mask))
    gather, take = moa.gather_tokens, routing.take

    def gather_from_another_utterance(x, index):
        return gather(x[torch.arange(len(x)) // index.shape[1]], index)

    def mask_from_another_utterance(log_weights, keep, index, straight_through):
        taken = take(log_weights, keep, index, straight_through)
        other = keep[torch.arange(len(keep)) // index.shape[1]]
        kept = other.expand_as(log_weights).gather(-1, index)
        return taken._replace(keep=kept)

    monkeypatch.setattr(routing, "take", mask_from_another_utterance)
    monkeypatch.setattr(moa, "gather_tokens", gather_from_another_utterance)
    apply = module.attn._apply_per_expert

    def split_across_experts(layer, x):
        y = apply(layer, x)
        if layer is not module.attn.to_kv:
            return y
        channels = y.transpose(1, 2).flatten(2)
        k, v = (
            half.unflatten(-1, (x.shape[1], -1)).transpose(1, 2)
            for half in channels.chunk(2, dim=-1)
        )
        return torch.cat([k, v], dim=-1)

    monkeypatch.setattr(module.attn, "_apply_per_expert", split_across_experts)
    monkeypatch.setattr(moa, "rotate_half", published_rotation(window))


@pytest.mark.parametrize("name", FAULTY)
def test_published_faults_are_not_ours(monkeypatch, goldens_folder, name):
    module, inputs, arrays = from_golden(goldens_folder, name)
    ours = module(**inputs)
    assert relative_error(ours, arrays["out/y"]) > 0.1
    with_published_faults(monkeypatch, module, arrays, window=8)
    assert relative_error(module(**inputs), arrays["out/y"]) < 1e-8


def frames(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def make(**options):
    defaults = {
        "num_routed_queries": 4,
        "num_routed_key_values": 3,
        "dim_head": 4,
        "heads": 2,
    }
    return MixtureOfAttention(8, **{**defaults, **options}).double()


def make_causal(**options):
    defaults = {
        "num_routed_queries": 2,
        "num_routed_key_values": 3,
        "local_attn_window_size": 3,
        "routed_window_size": 5,
        "dim_head": 4,
        "heads": 2,
    }
    return MixtureOfAutoregressiveAttention(8, **{**defaults, **options}).double()


@torch.no_grad()
def first_changed(module, x, cuts):
    """For each cut, the first frame that moves when the frames from there on change."""
    y, first = module(x), {}
    for cut in cuts:
        changed = x.clone()
        changed[:, cut:] = 3 * torch.randn_like(changed[:, cut:])
        moved = (module(changed) - y).abs().amax((0, 2)) > 1e-12
        first[cut] = int(moved.int().argmax())
    return first


@pytest.mark.parametrize("average_routed", [False, True])
@pytest.mark.parametrize("dynamic_routing", [False, True])
def test_autoregressive_is_causal_at_every_cut(dynamic_routing, average_routed):
    module = make_causal(dynamic_routing=dynamic_routing, average_routed=average_routed)
    x = frames(3, 23, 8)
    for cut, first in first_changed(module, x, range(1, 23)).items():
        assert first >= cut
    # What came before is the same when nothing follows at all.
    whole = module(x)
    for length in range(1, 23):
        torch.testing.assert_close(
            module(x[:, :length]), whole[:, :length], rtol=0, atol=1e-12
        )


def test_published_autoregressive_routing_sees_the_future(goldens_folder):
    # With query_routing="window" the module equals the golden, and thus the
    # published one: whether a frame queries depends on later frames of its window.
    module, inputs, _ = from_golden(goldens_folder, "moa_repaired_autoreg")
    x, window = inputs["x"].detach(), module.routed_window_size
    first = first_changed(module, x, range(1, 45))
    leaks = [cut for cut in first if first[cut] < cut]
    assert len(leaks) > 10
    assert all(first[cut] // window == cut // window for cut in leaks)
    module.query_routing = "causal"
    assert all(first >= cut for cut, first in first_changed(module, x, first).items())


@pytest.mark.parametrize("dynamic_routing", [False, True])
def test_bounded_past(dynamic_routing):
    module = make_causal(max_past_windows=2, dynamic_routing=dynamic_routing)
    x = frames(3, 30, 8)
    y = module(x)
    changed = x.clone()
    changed[:, :5] += 5 * torch.randn_like(changed[:, :5])
    moved = (module(changed) - y).abs().amax((0, 2)) > 1e-12
    assert moved[10:15].any() and not moved[15:].any()
    # Enough windows are all windows.
    module.max_past_windows = 5
    bounded = module(x)
    module.max_past_windows = None
    torch.testing.assert_close(bounded, module(x), rtol=0, atol=1e-12)


def test_causal_routing_takes_queries_and_no_more_than_asked():
    past, now = torch.randn(50, 2, 40), torch.randn(50, 2, 40)
    keep = torch.ones(50, 1, 40, dtype=torch.bool)
    taken = route_causally(past, keep, now, keep, 8)
    counts = taken.keep.sum(-1).float()
    assert counts.max() <= 8 and counts.mean() > 4
    # They are the high ones: the price separates.
    others = now.masked_fill(
        torch.zeros_like(now, dtype=torch.bool).scatter(-1, taken.index, taken.keep), 0
    )
    assert now.gather(-1, taken.index)[taken.keep].mean() > 1 > others.mean() + 0.5


def test_causal_routing_takes_every_frame_of_a_small_window():
    keep = torch.ones(1, 1, 4, dtype=torch.bool)
    scores = torch.randn(1, 2, 4)
    assert route_causally(-scores, keep, scores, keep, 4).keep.all()


def test_ties_take_the_earliest_frame():
    keep = torch.ones(1, 1, 64, dtype=torch.bool)
    same = route(torch.full((1, 1, 64), 2.0), keep, 5)
    assert same.index.tolist() == [[[0, 1, 2, 3, 4]]]
    # Published logits at D = 512 saturate nearly every weight; so do these.
    scores = 20 * torch.randn(1, 1, 64)
    saturated = scores[0, 0] > 0
    index = route(scores, keep, 5).index[0, 0]
    assert saturated[index].all()
    assert torch.equal(index, route(scores.clone(), keep, 5).index[0, 0])


@pytest.mark.parametrize("length", [3, 8, 9, 20])
def test_routing_weights_do_not_depend_on_padding(length):
    # Published: the mass min(9/8 k, n) and the case n <= k count padding.
    scores, count = 3 * frames(1, 1, 30), 8
    keep = (torch.arange(30) < length)[None, None]
    alone = route(scores[..., :length], keep[..., :length], count, False)
    padded = route(scores, keep, count, False)
    taken = padded.index[padded.keep]
    assert torch.equal(taken, alone.index[alone.keep])
    weight = padded.weight[padded.keep]
    torch.testing.assert_close(weight, alone.weight[alone.keep], rtol=0, atol=1e-12)
    if length <= count:
        assert (weight == 1).all()


def test_straight_through_weights_read_one_and_learn():
    scores = torch.randn(2, 3, 20, dtype=torch.float64, requires_grad=True)
    keep = torch.ones(2, 1, 20, dtype=torch.bool)
    hard = route(scores, keep, 6)
    soft = route(scores, keep, 6, straight_through=False)
    torch.testing.assert_close(hard.weight, torch.ones_like(hard.weight))
    assert (soft.weight < 0.999).any()
    factors = frames(2, 3, 6)
    (hard_gradient,) = torch.autograd.grad((hard.weight * factors).sum(), scores)
    (soft_gradient,) = torch.autograd.grad((soft.weight * factors).sum(), scores)
    assert hard_gradient.abs().max() > 0
    torch.testing.assert_close(hard_gradient, soft_gradient)


@pytest.mark.parametrize("options", [{}, {"local_attn": True}])
def test_gradient(options):
    # Straight-through gradients are by design not those of the forward pass.
    if options:
        options = {**options, "local_attn_window_size": 2}
    module = make(straight_through=False, average_routed=True, **options)
    mask = torch.arange(6)[None] < torch.tensor([[6], [5]])
    x = frames(2, 6, 8).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: module(x, mask=mask), x, fast_mode=True)


@pytest.mark.parametrize("dynamic_routing", [False, True])
def test_gradient_of_cross_attention_and_its_parameters(dynamic_routing):
    module = make(
        straight_through=False, dim_context=6, dynamic_routing=dynamic_routing
    )
    context_mask = torch.arange(7)[None] < torch.tensor([[7], [4]])
    x, context = frames(2, 6, 8).requires_grad_(), frames(2, 7, 6).requires_grad_()

    def run(x, context, *_):
        return module(x, context=context, context_mask=context_mask)

    inputs = (x, context, *module.parameters())
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


def test_gradient_of_autoregressive():
    module = make_causal(straight_through=False, dynamic_routing=True)
    x = frames(1, 12, 8).requires_grad_()
    assert torch.autograd.gradcheck(module, x, fast_mode=True)


MIXERS = {
    "plain": {"local_attn": False},
    "local": {"local_attn_window_size": 3, "average_routed": True},
    "dynamic": {"local_attn_window_size": 3, "dynamic_routing": True},
    "soft": {"local_attn_window_size": 3, "straight_through": False},
    "causal": {
        "causal": True,
        "local_attn_window_size": 4,
        "routed_window_size": 3,
        "max_past_windows": 2,
    },
    "causal_dynamic": {
        "causal": True,
        "local_attn_window_size": 1,
        "dynamic_routing": True,
        "average_routed": True,
    },
}


def make_mixer(name, d_model=8):
    mixer = MixtureOfAttentionMixer(
        d_model, 2, num_routed_queries=5, num_routed_key_values=4, **MIXERS[name]
    )
    return mixer.double()


@pytest.mark.parametrize("name", MIXERS)
def test_batch_equals_alone_and_nan_in_padding_reaches_nothing(name):
    mixer = make_mixer(name)
    # Longer than, equal to and shorter than what is routed: 5 queries, 4 keys.
    lengths = torch.tensor([17, 6, 5, 4, 1])
    mask = lengths_to_padding_mask(lengths, 17)
    clean = frames(5, 17, 8)
    x = clean.masked_fill(mask.unsqueeze(-1), torch.nan).requires_grad_()
    y, state = mixer(x, padding_mask=mask)
    assert state is None and y.isfinite().all()
    weight = frames(5, 17, 8).masked_fill(mask.unsqueeze(-1), 0)
    (y * weight).sum().backward()
    assert (x.grad[mask] == 0).all()
    gradients = [p.grad for p in mixer.parameters()]
    assert all(gradient.isfinite().all() for gradient in gradients)
    for row, length in enumerate(lengths):
        part = clean[row : row + 1, :length].clone().requires_grad_()
        alone, _ = mixer(part)
        torch.testing.assert_close(y[row : row + 1, :length], alone, rtol=0, atol=1e-12)
        (alone * weight[row : row + 1, :length]).sum().backward()
        torch.testing.assert_close(
            x.grad[row : row + 1, :length], part.grad, rtol=0, atol=1e-10
        )


@pytest.mark.parametrize("name", ["causal", "causal_dynamic"])
def test_causal_mixer_at_every_cut(name):
    mixer = make_mixer(name)
    x = frames(2, 14, 8)
    for cut, first in first_changed(lambda x: mixer(x)[0], x, range(1, 14)).items():
        assert first >= cut


@pytest.mark.parametrize("name", MIXERS)
def test_one_frame(name):
    y, _ = make_mixer(name)(frames(2, 1, 8))
    assert y.shape == (2, 1, 8) and y.isfinite().all()


def test_local_attention_is_never_dropped():
    # Published: with no more frames than routed queries, the local branch is ignored.
    module = make(local_attn=True, local_attn_window_size=2, num_routed_queries=9)
    x = frames(1, 6, 8)
    with_local = module(x)
    local = module.local_attn(x, torch.ones(1, 6, dtype=torch.bool))
    torch.nn.init.zeros_(module.local_attn.to_out.weight)
    torch.testing.assert_close(with_local - module(x), local)
    assert local.abs().max() > 0.01


@pytest.mark.parametrize("causal", [False, True])
def test_local_attention_turns_by_the_distance_of_frames(causal):
    window, num_frames = 3, 9
    module = LocalMultiHeadAttention(
        8, window_size=window, heads=1, dim_head=4, causal=causal
    ).double()
    x = frames(1, num_frames, 8)
    q, k, v = module.to_qkv(module.norm(x))[0].chunk(3, dim=-1)
    expected = torch.zeros(num_frames, 8, dtype=torch.float64)
    for i in range(num_frames):
        seen = range(max(0, i - window), i + 1 if causal else i + window + 1)
        seen = [j for j in seen if j < num_frames]
        scores = []
        for j in seen:
            angle = (i - j) * torch.tensor([1.0, 0.01], dtype=torch.float64)
            pairs = (torch.complex(t[:2], t[2:]) for t in (q[i], k[j]))
            turned = next(pairs) * torch.polar(torch.ones_like(angle), angle)
            scores.append((turned * next(pairs).conj()).real.sum() / 2)
        weights = torch.stack(scores).softmax(0)
        expected[i] = module.to_out(weights @ v[seen])
    got = module(x, torch.ones(1, num_frames, dtype=torch.bool))[0]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-8)


def test_dynamic_routing_follows_the_mean_of_the_real_queries():
    router = CoordinateDescentRouter(8, 2, pooled_dim=8).double()
    x, pooled = frames(1, 5, 8), frames(1, 3, 8)
    tokens = router.to_routing_token(pooled).view(3, 2, 8)
    torch.testing.assert_close(router(x, pooled)[0], tokens @ x[0].T)
    module = make(dynamic_routing=True)
    # Many utterances: where all that is taken has full weight, nothing is learnt.
    y = module(frames(32, 20, 8))
    y.square().sum().backward()
    for part in (module.query_router, module.key_value_router):
        assert part.to_routing_token.weight.grad.abs().max() > 0


def test_unrouted_frames_become_the_null_token():
    module = make(num_experts=1)
    y = module(frames(1, 12, 8))
    null = module.null_routed_token[0, 0]
    assert (y[0] == null).all(-1).sum() == 8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["plain", "local", "dynamic", "causal"])
def test_half_precision_with_long_correlated_input_and_silence(name, dtype):
    mixer = make_mixer(name).float()
    # Exact silence is divided by its norm.
    x = 30 * torch.randn(1, 1, 8) + torch.randn(1, 1000, 8)
    x[:, 500:700] = 0
    x.requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        y, _ = mixer(x)
    assert y.isfinite().all()
    y.float().mean().backward()
    assert x.grad.isfinite().all()


@pytest.mark.integration
def test_export_of_any_length_without_the_local_branch():
    def export(**options):
        mixer = MixtureOfAttentionMixer(8, 2, num_routed_queries=4, **options).eval()
        length = torch.export.Dim("T", min=33, max=4096)
        x = torch.randn(1, 64, 8)
        shapes = {"x": {1: length}}
        return mixer, torch.export.export(mixer, (x,), dynamic_shapes=shapes)

    mixer, program = export(local_attn=False)
    for frames in (40, 91):
        x = torch.randn(1, frames, 8)
        assert torch.equal(program.module()(x)[0], mixer(x)[0])
    # Local attention pads to whole windows: torch.export fixes the length, and says so.
    with pytest.raises(torch._dynamo.exc.UserError, match=r"(?i)constraints.*T"):
        export(local_attn=True, local_attn_window_size=4)


def test_equals_the_live_package():
    package = pytest.importorskip("mixture_of_attention")
    options = {
        "num_routed_queries": 4,
        "num_routed_key_values": 4,
        "dim_head": 4,
        "heads": 2,
    }
    for experts in (1, 2):
        theirs = package.MixtureOfAttention(
            16, num_experts=experts, use_triton=False, flash_attn=False, **options
        )
        for router in (theirs.query_router, theirs.key_value_router):
            # As published most weights are equal, and the choice is left to chance.
            router.routing_token.data /= 4
        ours = MixtureOfAttention(16, num_experts=experts, **options)
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(2, 20, 16)
        if experts == 1:
            torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
            continue
        # Its experts read each other's utterances: no batch equals its utterances.
        alone = torch.cat([theirs(x[:1]), theirs(x[1:])])
        assert (theirs(x) - alone).abs().max() > 0.01
        alone = torch.cat([ours(x[:1]), ours(x[1:])])
        torch.testing.assert_close(ours(x), alone)


def test_seed_quick_start():
    attention = MixtureOfAttention(
        dim=512,
        dim_context=256,
        num_routed_queries=16,
        num_routed_key_values=16,
        num_experts=2,
        dim_head=64,
        heads=8,
    )
    x, mask = torch.randn(1, 1024, 512), torch.ones((1, 1024)).bool()
    y = attention(x, context=torch.randn(1, 512, 256), mask=mask)
    assert y.shape == (1, 1024, 512)


def test_refusals():
    module, x = make(dim_context=6), frames(1, 5, 8)
    with pytest.raises(ValueError, match="needs a context of width 6, got None"):
        module(x)
    with pytest.raises(ValueError, match="context must have shape"):
        module(x, context=frames(1, 5, 8))
    with pytest.raises(ValueError, match="without a context"):
        make()(x, context_mask=torch.ones(1, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="N >= 1"):
        make()(frames(1, 0, 8))
    with pytest.raises(ValueError, match="must be bool of shape"):
        make()(x, mask=torch.ones(1, 5))
    with pytest.raises(ValueError, match="num_experts must be >= 1, got 0"):
        make(num_experts=0)
    with pytest.raises(ValueError, match="needs local_attn_window_size"):
        make(local_attn=True)
    with pytest.raises(ValueError, match="'causal' or 'window', got 'later'"):
        make_causal(query_routing="later")
    with pytest.raises(ValueError, match="causal=True needs local_attn=True"):
        MixtureOfAttentionMixer(8, 2, causal=True, local_attn=False)
    with pytest.raises(ValueError, match="routed_window_size belongs to causal=True"):
        MixtureOfAttentionMixer(8, 2, routed_window_size=4)
    with pytest.raises(ValueError, match="multiple of num_heads"):
        MixtureOfAttentionMixer(8, 3)
    mixer = make_mixer("causal")
    with pytest.raises(ValueError, match="chunk rule"):
        mixer(x, chunk=ChunkRule(4))
    with pytest.raises(ValueError, match="cannot stream"):
        mixer(x, state={})
    with pytest.raises(ValueError, match="cannot stream"):
        mixer.init_state(2)
