"""``ak.nn`` against PyTorch's modules: parameters, keys, initialisation, values and gradients within the budget."""

import copy
import inspect
import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import afn_kernels as ak
from afn_kernels import _triton
from tests.budget import assert_same_but_rounding, assert_within_budget, gradients
from tests.orders import in_orders

D = 48
IMPLS = ["auto", "reference", *(["triton"] if _triton.interpreted() and not _triton.available() else [])]
DTYPES = [torch.float32, torch.bfloat16]


class Pooled(nn.Module):
    """What PooledNorm is made of in PyTorch."""

    def __init__(self, width, eps=1e-5, device=None, dtype=None):
        super().__init__()
        made = nn.LayerNorm(width, eps, device=device, dtype=dtype)
        self.weight, self.bias, self.eps = made.weight, made.bias, eps

    def forward(self, x):
        pooled = F.avg_pool1d(x.transpose(-1, -2), 2).transpose(-1, -2)
        return F.layer_norm(pooled, self.weight.shape, self.weight, self.bias, self.eps)


class LlamaMLP(nn.Module):
    """The MLP of Llama, Qwen2 and Gemma as transformers writes it."""

    def __init__(self, width, hidden, bias=False, device=None, dtype=None, approximate=None):
        super().__init__()
        self.activation = partial(F.gelu, approximate=approximate) if approximate else F.silu
        self.gate_proj, self.up_proj = (nn.Linear(width, hidden, bias, device, dtype) for _ in range(2))
        self.down_proj = nn.Linear(hidden, width, bias, device, dtype)

    def forward(self, x):
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


MODULES = {
    "RMSNorm": (nn.RMSNorm, (D,), {}),
    "RMSNorm, eps": (nn.RMSNorm, (D, 1e-6), {}),
    "RMSNorm, two axes": (nn.RMSNorm, ((7, D),), {}),
    "RMSNorm, no weight": (nn.RMSNorm, (D,), {"elementwise_affine": False}),
    "LayerNorm": (nn.LayerNorm, (D,), {}),
    "LayerNorm, eps": (nn.LayerNorm, (D, 1e-3), {}),
    "LayerNorm, two axes": (nn.LayerNorm, ([7, D],), {}),
    "LayerNorm, no bias": (nn.LayerNorm, (D,), {"bias": False}),
    "LayerNorm, no parameters": (nn.LayerNorm, (D,), {"elementwise_affine": False}),
    "PooledNorm": (Pooled, (D,), {}),
    "PooledNorm, eps": (Pooled, (D, 1e-3), {}),
    "SwiGLU": (LlamaMLP, (D, 80), {}),
    "SwiGLU, bias": (LlamaMLP, (D, 80, True), {}),
    "GeGLU": (LlamaMLP, (D, 80), {"approximate": "none"}),
    "GeGLU, tanh": (LlamaMLP, (D, 80), {"approximate": "tanh"}),
}


def pair(name: str, dtype: torch.dtype, impl: str = "auto") -> tuple[nn.Module, nn.Module]:
    """Ours and PyTorch's, made from the same seed."""
    theirs, args, options = MODULES[name]
    ours = getattr(ak.nn, name.partition(",")[0])
    made = []
    for make, more in ((ours, {"impl": impl}), (theirs, {})):
        torch.manual_seed(1)
        made.append(make(*args, **options, **more, dtype=dtype))
    return made[0], made[1]


def shaken(ours: nn.Module, theirs: nn.Module) -> None:
    """Parameters that are neither ones nor zeros, the same in both."""
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(torch.rand_like(p) - 0.5)
    ours.load_state_dict(theirs.state_dict())


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_state_and_initialisation_are_pytorchs(name, dtype):
    ours, theirs = (module.state_dict() for module in pair(name, dtype))
    assert list(ours) == list(theirs)
    for key, value in theirs.items():
        assert ours[key].dtype == value.dtype
        assert torch.equal(ours[key], value), key


@pytest.mark.parametrize("name", [name for name in MODULES if hasattr(nn, name)])
def test_signatures_are_pytorchs(name):
    ours, theirs = (inspect.signature(m.__init__).parameters for m in (getattr(ak.nn, name), getattr(nn, name)))
    assert list(ours) == [*theirs, "impl"]
    assert all(ours[key].default == theirs[key].default for key in theirs)
    module = getattr(ak.nn, name)(D)
    assert repr(module) == repr(getattr(nn, name)(D))


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("impl", IMPLS)
def test_values_and_gradients(name, dtype, impl):
    ours, theirs = pair(name, dtype, impl)
    shaken(ours, theirs)
    wide = copy.deepcopy(theirs).double()
    x = torch.randn(5, 7, D, dtype=dtype)

    def run(module):
        given = x.to(torch.float64 if module is wide else dtype).requires_grad_()
        y = module(given)
        return [y.detach(), *gradients(y, (given, *module.parameters()))]

    for mine, exact, *same in zip(run(ours), run(wide), *in_orders(lambda: run(theirs)), strict=True):
        assert mine.dtype == same[0].dtype
        rms = exact.square().mean().sqrt().item()
        rows = {"summed": 35 if mine.dim() < 3 else 0, "rms": rms}
        assert_within_budget(mine, same, exact, **rows)


@pytest.mark.parametrize("name", ["RMSNorm", "RMSNorm, two axes", "LayerNorm", "LayerNorm, no bias"])
def test_the_residual_is_added_first(name):
    ours, theirs = pair(name, torch.float32)
    shaken(ours, theirs)
    x, residual = torch.randn(2, 5, 7, D)
    y, h = ours(x, residual)
    assert torch.equal(h, x + residual)
    assert torch.equal(y, ours(h))


@pytest.mark.parametrize("name", ["RMSNorm", "LayerNorm", "LayerNorm, no parameters"])
def test_float32_parameters_and_stream_beside_bfloat16(name):
    """What PyTorch's modules give for such an input, and the exact sum."""
    ours, theirs = pair(name, torch.float32)
    shaken(ours, theirs)
    x, residual = torch.randn(5, D).bfloat16(), torch.randn(5, D)
    assert ours(x).dtype == theirs(x).dtype == torch.bfloat16
    y, h = ours(x, residual)
    assert torch.equal(h, x + residual)
    assert torch.equal(y, ours(h).bfloat16())


def test_rms_norms_eps_is_pytorchs():
    for dtype in (torch.float64, *DTYPES):
        ours, theirs = pair("RMSNorm", dtype)
        x = torch.randn(5, D, dtype=dtype) * 1e-4  # rows that the default decides
        assert_same_but_rounding(ours(x), in_orders(lambda x=x, theirs=theirs: theirs(x)))


def test_pooled_norm_of_packed_sequences():
    module = ak.nn.PooledNorm(D)
    x, cu = torch.randn(9, D), torch.tensor([0, 4, 9], dtype=torch.int32)
    expected = torch.cat([module(x[:4]), module(x[4:])])
    assert torch.equal(module(x, cu), expected)
    assert torch.equal(module(x, cu, total=4), expected)
    window, frame = torch.zeros(4, dtype=torch.int64), torch.arange(4)
    turned = ak.nn.RotaryTimeEmbedding()(expected, window, frame)
    assert torch.equal(module(x, cu, rote={"window": window, "frame": frame}), turned)


def test_rotary_time_embedding_is_the_op():
    module = ak.nn.RotaryTimeEmbedding(theta=600.0, phase_dtype=torch.float64)
    x = torch.randn(2, 6, D)
    window, frame = torch.tensor([[0], [3]]).expand(2, 6), torch.arange(6).expand(2, 6)
    found = module(x, window, frame)
    for row in range(2):
        one = ak.rote(x[row], window[row], frame[row], theta=600.0, phase_dtype=torch.float64)
        assert torch.equal(found[row], one)
    assert not module.state_dict()
    assert "theta=600.0" in repr(module)


REDUCTIONS = ["mean", "sum", "none"]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("impl", IMPLS)
def test_linear_cross_entropy(reduction, dtype, impl):
    torch.manual_seed(2)
    ours = ak.nn.LinearCrossEntropy(D, 37, ignore_index=-1, reduction=reduction, dtype=dtype, impl=impl)
    torch.manual_seed(2)
    head = nn.Linear(D, 37, bias=False, dtype=dtype)
    assert list(ours.state_dict()) == list(head.state_dict())
    assert torch.equal(ours.weight, head.weight)

    hidden, labels = torch.randn(3, 11, D, dtype=dtype), torch.randint(37, (3, 11))
    labels[0, 3:7] = -1
    loss = nn.CrossEntropyLoss(ignore_index=-1, reduction=reduction)

    def pytorchs(dtype):
        given, weight = (x.detach().to(dtype).requires_grad_() for x in (hidden, head.weight))
        value = loss(F.linear(given, weight).flatten(0, 1), labels.flatten())
        value = value.view(labels.shape) if reduction == "none" else value
        return [value.detach(), *gradients(value, (given, weight))]

    hidden.requires_grad_()
    value = ours(hidden, labels)
    found = [value.detach(), *gradients(value, (hidden, ours.weight))]
    for mine, exact, *same in zip(found, pytorchs(torch.float64), *in_orders(lambda: pytorchs(dtype)), strict=True):
        assert mine.dtype == (torch.float32 if mine.shape == found[0].shape else dtype)
        rows = {"summed": 33, "rms": exact.square().mean().sqrt().item()}
        assert_within_budget(mine, same, exact, **rows)


def test_a_loss_without_labels_is_zero_and_a_head_may_be_tied():
    loss, embedding = ak.nn.LinearCrossEntropy(D, 37), nn.Embedding(37, D)
    loss.weight = embedding.weight
    value = loss(torch.randn(4, D), torch.full((4,), -100))
    assert value == 0
    loss(torch.randn(4, D), torch.arange(4)).backward()
    assert embedding.weight.grad.abs().max() > 0


@pytest.mark.parametrize("n_mels", [80, 128])
def test_audio_front_end(n_mels):
    pcm = 0.1 * torch.randn(2, 16_000)
    mel = ak.nn.AudioFrontEnd(n_mels)(pcm)
    assert torch.equal(mel, ak.log_mel(pcm, n_mels=n_mels))
    assert ak.nn.AudioFrontEnd(n_mels, out_dtype=torch.bfloat16)(pcm).dtype == torch.bfloat16
    assert not ak.nn.AudioFrontEnd(n_mels).state_dict()
    for dtype in DTYPES:
        front = ak.nn.AudioFrontEnd(n_mels, 24, dtype=dtype)
        y = front((pcm * 32767).to(torch.int16))
        assert y.shape == (2, 50, 24)
        assert y.dtype == dtype


def test_audio_front_end_is_the_stem_of_whisper():
    transformers = pytest.importorskip("transformers")
    settings = transformers.WhisperConfig(
        d_model=24, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=24, num_mel_bins=80
    )
    encoder = transformers.models.whisper.modeling_whisper.WhisperEncoder(settings)
    front = ak.nn.AudioFrontEnd(80, 24)
    stem = {key: value for key, value in encoder.state_dict().items() if key.startswith("conv")}
    assert list(front.state_dict()) == list(stem)
    front.load_state_dict(stem)
    pcm = 0.1 * torch.randn(1, 3200)
    mel = ak.log_mel(pcm, n_mels=80)
    assert_same_but_rounding(
        front(pcm), in_orders(lambda: F.gelu(encoder.conv2(F.gelu(encoder.conv1(mel)))).transpose(1, 2))
    )


def test_impl_reaches_the_op():
    missing = "no implementation 'fast'"
    x, labels = torch.randn(4, D), torch.zeros(4, dtype=torch.int64)
    calls = [
        (ak.nn.RMSNorm(D, impl="fast"), (x,)),
        (ak.nn.LayerNorm(D, impl="fast"), (x,)),
        (ak.nn.PooledNorm(D, impl="fast"), (x,)),
        (ak.nn.SwiGLU(D, D, impl="fast"), (x,)),
        (ak.nn.GeGLU(D, D, impl="fast"), (x,)),
        (ak.nn.RotaryTimeEmbedding(impl="fast"), (x, labels, labels)),
        (ak.nn.LinearCrossEntropy(D, 5, impl="fast"), (x, labels)),
        (ak.nn.LinearCrossEntropy(D, 5, reduction="none", impl="fast"), (x, labels)),
        (ak.nn.AudioFrontEnd(impl="fast"), (torch.zeros(1, 3200),)),
        (ak.nn.Attention(D, 2, impl="fast"), (x,)),
        (ak.nn.MLP(D, D, impl="fast"), (x,)),
        (ak.nn.RotaryEmbedding(D, impl="fast"), (x[:, None], x[:, None], x[:, 0])),
    ]
    assert {type(module).__name__ for module, _ in calls} == set(ak.nn.__all__)
    for module, inputs in calls:
        with pytest.raises(ValueError, match=missing):
            module(*inputs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ak.nn.RMSNorm(D)(torch.zeros(3, 7)), r"\[3, 7\], which does not end in \[48\]"),
        (lambda: ak.nn.LayerNorm((3, D))(torch.zeros(D)), r"does not end in \[3, 48\]"),
        (lambda: ak.nn.RotaryTimeEmbedding(base=3), r"no option \['base'\]"),
        (lambda: ak.nn.RotaryTimeEmbedding()(torch.zeros(2, 3, D), torch.zeros(6), torch.zeros(2, 3)), r"window \[6\]"),
        (lambda: ak.nn.LinearCrossEntropy(D, 5, reduction="max"), "reduction is 'max'"),
        (lambda: ak.nn.LinearCrossEntropy(D, 5)(torch.zeros(2, 3, D), torch.zeros(6)), r"labels are \[6\]"),
        (lambda: ak.nn.AudioFrontEnd(width=8, out_dtype=torch.bfloat16), "out_dtype=torch.bfloat16"),
        (lambda: ak.nn.AudioFrontEnd(64)(torch.zeros(1, 3200)), "n_mels=64"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_modules_compile_to_one_graph():
    x = torch.randn(5, 7, D)
    model = nn.Sequential(ak.nn.LayerNorm(D), ak.nn.SwiGLU(D, 80), ak.nn.RMSNorm(D), ak.nn.PooledNorm(D))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert_same_but_rounding(compiled(x), in_orders(lambda: model(x)))


def test_it_comes_without_transformers():
    code = "import sys, afn_kernels as ak; ak.nn.RMSNorm(4); print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    code = "import sys, afn_kernels as ak; ak.FeatureExtractor; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
