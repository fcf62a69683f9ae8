"""A training step of whole encoders, and encoders under ``torch.compile``.

Encoders of the 8M and 22M recipes without their front end, which needs SpeechBrain:
frames of 40 ms in, forward, backward and AdamW, under autocast to bfloat16.
"""

import functools
import time

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.gpu.rows import Case, Measure
from benchmarks.gpu.timing import peak_mib, synchronize, time_call
from hyperconformer.encoders.conformer import ConformerEncoder
from hyperconformer.mixers.base import TokenMixer
from hyperconformer.mixers.linear_attention import rotary_codes, rotate_pairs

FRAMES_A_SECOND = 25
MODELS = {
    "8M": {"num_layers": 10, "d_model": 144, "d_ffn": 576, "nhead": 8},
    "22M": {"num_layers": 10, "d_model": 256, "d_ffn": 1024, "nhead": 8},
}
QUICK_MODELS = {"tiny": {"num_layers": 1, "d_model": 16, "d_ffn": 32, "nhead": 2}}
# Ten minutes of audio, as the recipes' batches have.
BATCHES = ((30, 20), (10, 60), (2, 300))
QUICK_BATCHES = ((2, 4),)
LONGEST = max(FRAMES_A_SECOND * seconds for _, seconds in BATCHES)


class RotaryAttention(TokenMixer):
    """Attention with rotary positions (arXiv:2104.09864) by torch's own kernel.

    The package's RoPEMHA is SpeechBrain's; this one needs torch alone.

    Arguments
    ---------
    d_model : int
        D.
    num_heads : int
        H.
    dropout : float
        Of the weights.
    """

    quadratic = True

    def __init__(self, d_model: int, num_heads: int, *, dropout: float = 0.0):
        super().__init__(d_model)
        self.num_heads, self.dropout = num_heads, dropout
        self.inside = nn.Linear(d_model, 3 * d_model)
        self.outside = nn.Linear(d_model, d_model)
        codes = rotary_codes(LONGEST, d_model // num_heads)
        self.register_buffer("codes", codes, persistent=False)

    def forward(self, x, *, padding_mask=None, chunk=None, state=None):
        """See :meth:`TokenMixer.forward`."""
        self.check_inputs(x, padding_mask, chunk, state)
        q, k, v = self.inside(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
        codes = self.codes[:, : x.shape[1]]
        q, k = rotate_pairs(q, codes), rotate_pairs(k, codes)
        hidden = None
        if padding_mask is not None:
            hidden = ~padding_mask[:, None, None]
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, hidden, dropout)
        return self.outside(y.transpose(1, 2).flatten(2)), None


# Names to the mixer and its options. On a GPU that the kernels are not proven for,
# they run only if forced.
MIXERS = {
    "HyperMixing, Triton": ("hypermixing", {"backend": "triton"}),
    "HyperMixing, torch": ("hypermixing", {"backend": "torch"}),
    "HyperGLU, Triton": ("hyperglu", {"backend": "triton"}),
    "attention, RoPE": (RotaryAttention, {}),
}


def list_steps(settings, end):
    """The training steps; see ``processes.run_part``."""
    models = QUICK_MODELS if settings.quick else MODELS
    batches = QUICK_BATCHES if settings.quick else BATCHES
    return [
        Case(
            f"{model} | {name} | {count} x {seconds} s",
            "bfloat16",
            functools.partial(_step, model, name, count, seconds, settings),
        )
        for count, seconds in batches
        for model in models
        for name in _mixers(settings)
    ]


def list_compiled(settings, end):
    """The encoders to compile; see ``processes.run_part``."""
    model = "tiny" if settings.quick else "8M"
    count, seconds = (QUICK_BATCHES if settings.quick else BATCHES)[0]
    names = _mixers(settings)[: 1 if settings.quick else None]
    return [
        Case(
            f"{model} | {name} | {count} x {seconds} s",
            "bfloat16",
            functools.partial(_compile, model, name, count, seconds, settings),
        )
        for name in names
    ]


def _mixers(settings):
    """The interpreter is too slow for an encoder: a CPU gets torch's paths."""
    return [n for n in MIXERS if settings.device == "cuda" or not n.endswith("Triton")]


def build_encoder(model, name, device):
    """An encoder of one of the sizes with one of the mixers.

    Arguments
    ---------
    model : str
        Key of ``MODELS`` or ``QUICK_MODELS``.
    name : str
        Key of ``MIXERS``.
    device : str
        Where it is.

    Returns
    -------
    torch.nn.Module
    """
    mixer, options = MIXERS[name]
    encoder = ConformerEncoder(
        **{**MODELS, **QUICK_MODELS}[model],
        activation=nn.GELU,
        dropout=0.1,
        attention_type=mixer,
        mixer_options=options,
    )
    return encoder.to(device)


class Trainee:
    """An encoder, its optimiser and a batch.

    Arguments
    ---------
    encoder : torch.nn.Module
        It maps (B, T, D) to a tuple whose first member is (B, T, D).
    x : torch.Tensor
        (B, T, D).
    """

    def __init__(self, encoder, x):
        self.encoder, self.x = encoder, x
        on_gpu = x.device.type == "cuda"
        parameters = encoder.parameters()
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=on_gpu)

    def loss(self, autocast=True):
        """Of a forward pass: any number that needs every output."""
        with torch.autocast(self.x.device.type, torch.bfloat16, enabled=autocast):
            encoded = self.encoder(self.x)[0]
        return encoded.float().square().mean()

    def update(self):
        """One training step."""
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def make_trainee(model, name, count, seconds, device):
    """A :class:`Trainee` in training mode, and its encoder's number of parameters."""
    torch.manual_seed(0)
    encoder = build_encoder(model, name, device).train()
    size = sum(weight.numel() for weight in encoder.parameters())
    width = {**MODELS, **QUICK_MODELS}[model]["d_model"]
    x = torch.randn(count, seconds * FRAMES_A_SECOND, width, device=device)
    return Trainee(encoder, x), size


def _step(model, name, count, seconds, settings):
    """Yield time, speed and memory of one training step."""
    trainee, size = make_trainee(model, name, count, seconds, settings.device)
    yield Measure("parameters", size)
    trainee.update()
    mib = peak_mib(trainee.update, settings.device)
    times = time_call(trainee.update, settings.device, settings.quick)
    yield from times.measures("step")
    yield Measure("speed", 1e3 * count * seconds / times.p50, "audio s/s")
    if mib is not None:
        yield Measure("peak memory", mib, "MiB")


def _compile(model, name, count, seconds, settings):
    """Yield the time to compile, the gain, and the difference of the outputs."""
    trainee, _ = make_trainee(model, name, count, seconds, settings.device)
    encoder = trainee.encoder
    eager = time_call(trainee.update, settings.device, settings.quick)
    encoder.eval()
    with torch.no_grad():
        expected = encoder(trainee.x)[0]
    torch.compiler.reset()
    backend = "inductor" if settings.device == "cuda" else "aot_eager"
    compiled = torch.compile(encoder, fullgraph=True, backend=backend)
    with torch.no_grad():
        got = compiled(trainee.x)[0]
    difference = ((got - expected).norm() / expected.norm()).item()
    yield Measure("difference from eager, float32", difference, "of the norm")
    encoder.train()
    trainee.encoder = compiled
    start = time.perf_counter()
    trainee.update()
    synchronize(settings.device)
    yield Measure("first step, compiling", time.perf_counter() - start, "s")
    times = time_call(trainee.update, settings.device, settings.quick)
    yield from eager.measures("eager step")
    yield from times.measures("compiled step")
