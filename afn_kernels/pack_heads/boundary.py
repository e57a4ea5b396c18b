"""pack_heads and unpack_heads as torch.compile and autograd see their CUDA kernels."""

from afn_kernels._library import Boundary


def _heads_of(heads: list[int], with_kv: bool) -> int:
    """Heads of all parts."""
    q = sum(b - a for a, b in zip(heads[::4], heads[1::4], strict=True))
    return q + (2 * sum(d - c for c, d in zip(heads[2::4], heads[3::4], strict=True)) if with_kv else 0)


def _pack_fake(q, k, v, heads, positions, inv_freq):
    return q.new_empty(q.shape[0] * _heads_of(heads, k is not None) * q.shape[2])


def _setup_pack(ctx, inputs, output):
    q, k, _, heads, positions, inv_freq = inputs
    ctx.save_for_backward(positions, inv_freq)
    ctx.heads, ctx.sizes = heads, (q.shape[0], q.shape[1], k.shape[1], q.shape[2])


def _pack_backward(ctx, grad):
    return SUM(grad.contiguous(), ctx.heads, *ctx.sizes, list(ctx.needs_input_grad[:3]), *ctx.saved_tensors)


def _unpack_fake(flat, heads, dim):
    return flat.new_empty(flat.shape[0] // (heads[-3] * dim), heads[-3], dim)


def _setup_unpack(ctx, inputs, output):
    ctx.heads = inputs[1]


def _unpack_backward(ctx, grad):
    return PACK(grad, None, None, ctx.heads, None, None)


def _sum_fake(flat, heads, tokens, q_heads, kv_heads, dim, wanted, positions, inv_freq):
    counts = (q_heads, kv_heads, kv_heads)
    return tuple(flat.new_empty((tokens, n, dim) if want else 0) for n, want in zip(counts, wanted, strict=True))


PACK = Boundary(
    "pack_heads(Tensor q, Tensor? k, Tensor? v, int[] heads, Tensor? positions, Tensor? inv_freq) -> Tensor",
    "afn_kernels.pack_heads.cuda:pack",
    _pack_fake,
    setup_context=_setup_pack,
    backward=_pack_backward,
)
UNPACK = Boundary(
    "unpack_heads(Tensor flat, int[] heads, int dim) -> Tensor",
    "afn_kernels.pack_heads.cuda:unpack_q",
    _unpack_fake,
    setup_context=_setup_unpack,
    backward=_unpack_backward,
)
SUM = Boundary(
    "pack_heads_backward(Tensor flat, int[] heads, SymInt tokens, int q_heads, int kv_heads, int dim, bool[] wanted,"
    " Tensor? positions, Tensor? inv_freq) -> (Tensor, Tensor, Tensor)",
    "afn_kernels.pack_heads.cuda:unpack",
    _sum_fake,
)


def pack_heads(q, k, v, heads, *, positions, inv_freq):
    """The "cuda" row of pack_heads' table."""
    if positions is not None:
        positions, inv_freq = positions.contiguous(), inv_freq.contiguous()
    return PACK(q, k, v, _flat(heads), positions, inv_freq)


def unpack_heads(flat, heads, head_dim):
    """The "cuda" row of unpack_heads' table."""
    return UNPACK(flat.contiguous(), _flat(heads), head_dim)


def _flat(heads) -> list[int]:
    return [number for peer in heads for number in peer]
