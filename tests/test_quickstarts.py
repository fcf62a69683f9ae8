"""The usage examples of the five projects that this one grew from.

Each runs as its authors wrote it, but for the import line.
"""

import torch


def test_hypermixing():
    from hyperconformer import HyperMixing

    token_mixer = HyperMixing(
        input_output_dim=128,
        hypernet_size=512,
        tied=False,
        num_heads=2,
        max_length=3000,
    )
    queries = torch.randn((64, 50, 128))
    keys = torch.randn((64, 25, 128))
    values = torch.randn((64, 25, 128))
    out = token_mixer(queries, keys, values)
    assert out.size() == queries.size()


def test_hypermixer_paper():
    """The paper has pseudocode: one head, two-layer hypernetworks, a LayerNorm."""
    from hyperconformer import HyperMixing

    d, d_prime = 64, 128
    mixing = HyperMixing(input_output_dim=d, hypernet_size=d_prime, num_heads=1)
    queries, keys = torch.randn(2, 30, d), torch.randn(2, 20, d)
    assert mixing(queries, keys, keys).shape == (2, 30, d)
    tied = HyperMixing(input_output_dim=d, hypernet_size=d_prime, tied=True)
    assert tied(keys, keys, keys).shape == (2, 20, d)
    count = sum(p.numel() for p in mixing.parameters())
    tied_count = sum(p.numel() for p in tied.parameters())
    assert tied_count < 0.6 * count


def test_mixture_of_attention():
    from hyperconformer import MixtureOfAttention

    mixture_of_attn = MixtureOfAttention(
        dim=512,
        dim_context=256,
        num_routed_queries=16,
        num_routed_key_values=16,
        num_experts=2,
        dim_head=64,
        heads=8,
    )
    x = torch.randn(1, 1024, 512)
    mask = torch.ones((1, 1024)).bool()
    context = torch.randn(1, 512, 256)
    assert mixture_of_attn(x, context=context, mask=mask).shape == (1, 1024, 512)


def test_hyperglu():
    from hyperconformer import HyperGLU, HyperGLUConfig

    B, T, D, H = 2, 128, 512, 8
    cfg = HyperGLUConfig(
        n_embd=D,
        n_head=H,
        block_size=2048,
        bias=False,
        attn_kind="glu",
        attn_norm="out_scale",
        qk_rank=None,
        vo_rank=None,
        do_masking=True,
        aligner_kind="offset",
        use_kv_conv=True,
        conv_kernel_size=4,
        use_rope=False,
        rope_base=10000.0,
        gate_act="sigmoid",
        use_qk_gate=True,
        use_vo_gate=True,
        use_op1=True,
        op1_rank=16,
        op1_per_head=True,
        op1_use_diag=True,
        op1_shortcut=True,
        op1_do_masking=True,
        use_op2=True,
        op2_rank=16,
        op2_per_head=True,
        op2_use_diag=True,
        op2_shortcut=True,
        op2_do_masking=True,
        impl_default="chunked",
        chunk_T=1024,
        norm_eps=1e-12,
    )
    layer = HyperGLU(cfg).eval()
    with torch.no_grad():
        y = layer(torch.randn(B, T, D))
    assert y.shape == (B, T, D)


def test_linear_attention_transformer():
    """Its own comment promises width 512; a language model returns its logits."""
    from hyperconformer import LinearAttentionTransformerLM

    model = LinearAttentionTransformerLM(
        num_tokens=20000,
        dim=512,
        heads=8,
        depth=12,
        max_seq_len=8192,
        causal=True,
        blindspot_size=64,
        n_local_attn_heads=4,
        local_attn_window=128,
        one_kv_head=True,
        reversible=True,
        ff_chunks=2,
    )
    # 8192 tokens as in the example take a minute and 650 MB of logits on a CPU.
    x = torch.randint(0, 20000, (1, 512))
    with torch.no_grad():
        assert model(x).shape == (1, 512, 20000)
