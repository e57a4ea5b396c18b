"""What compilers make of every Triton and CUDA kernel for an H100, with no GPU: registers, spills, loops, rules.

    python -m bench.sm90 [--out bench/results/sm90] [--only rms_norm] [--lengths] [--against before.jsonl]

Each workload of bench/ops is called on tensors without memory; every launch on the way is compiled for sm_90a instead
of run. Bytes are those of a launch's tensors, each counted once; the floor is what the op must move or compute. Ops
that have a kernel in csrc/cuda list it as *.cu, compiled by NVRTC. PTX and SASS are held to the rules of ``lint``.
"""

HBM = {"h100": 3.35e12, "h200": 4.8e12}  # bytes a second
FLOPS = 989e12  # bf16, dense
