#!/usr/bin/env python3
"""Times PyTorch's flash softmax attention, the peer of `hedgehog bench`: forward, and forward with backward, causal, bf16.

    python3 tests/peer_attention.py [tokens a row]     default 1024; 32,768 tokens in all, 12 heads of 64

Prints medians of 20 in milliseconds. Needs a GPU and PyTorch; the product itself needs no Python.
"""
import statistics
import sys

import torch

T = int(sys.argv[1]) if len(sys.argv) > 1 else 1024
B, H, D = 32768 // T, 12, 64
q, k, v, do = (torch.randn(B, H, T, D, device="cuda", dtype=torch.bfloat16) for _ in range(4))
for x in (q, k, v):
    x.requires_grad_(True)


def forward():
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def both():
    forward().backward(do)


def median_ms(work):
    for _ in range(5):
        work()
    times = []
    for _ in range(20):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, flash, T {T}: "
          f"forward {median_ms(forward):.3f} ms, forward and backward {median_ms(both):.3f} ms")
