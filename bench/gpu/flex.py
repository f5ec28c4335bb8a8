#!/usr/bin/env python3
"""FlexAttention on the shapes that gpu_check_program has measured: flex.py SHAPES RECORDS SECONDS."""

import json
import sys
import time


def record(file, name, status, **fields):
    with open(file, "a") as out:
        print(json.dumps({"part": "flex", "case": None, "name": name, "status": status, **fields}), file=out)
    print(f"flex: {status}  {name}  " + "  ".join(f"{k} {v}" for k, v in fields.items()), flush=True)


def modifiers(shape, torch, flex):
    """The block mask and the score modifier of a pattern of bench/gpu/speed.cpp."""
    causal = lambda b, h, q, kv: kv <= q
    window = lambda b, h, q, kv: (kv <= q) & (q - kv < 1024)
    pattern, heads = shape["pattern"], int(shape["H"])
    slopes = 2.0 ** (-8.0 / heads * torch.arange(1, heads + 1, device="cuda"))
    score = {"alibi": lambda s, b, h, q, kv: s - slopes[h] * (q - kv),
             "softcap": lambda s, b, h, q, kv: 20 * torch.tanh(s / 20)}.get(pattern)
    if pattern in ("dense", "decoding"):
        return None, score
    mask = window if pattern == "window" else causal
    return flex.create_block_mask(mask, None, None, int(shape["L"]), int(shape["S"]), device="cuda"), score


def least_ms(call, torch):
    """The least time of a call, each round as long as fills some milliseconds."""
    def milliseconds(times):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(times):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / times
    for _ in range(3):
        call()
    least = milliseconds(1)
    for _ in range(6):
        least = min(least, milliseconds(max(1, min(100, int(20 / least)))))
    return least


def measure(shape, torch, flex, compiled):
    L, S, D = (int(shape[x]) for x in ("L", "S", "D"))
    dtype = {"BFloat16": torch.bfloat16, "Half": torch.float16, "Float": torch.float32}[shape["dtype"]]
    make = lambda heads, n: torch.randn(int(shape["B"]), int(heads), n, D, device="cuda", dtype=dtype,
                                        requires_grad=True)
    q, k, v = make(shape["H"], L), make(shape["Hkv"], S), make(shape["Hkv"], S)
    grad = torch.randn_like(q)
    mask, score = modifiers(shape, torch, flex)
    attend = lambda: compiled(q, k, v, score_mod=score, block_mask=mask, enable_gqa=shape["H"] != shape["Hkv"])
    if shape["backward"]:
        return least_ms(lambda: torch.autograd.grad(attend(), (q, k, v), grad), torch)
    with torch.no_grad():
        return least_ms(attend, torch)


def main(shapes, records, seconds):
    end = time.monotonic() + seconds
    try:
        import torch
        from torch.nn.attention import flex_attention as flex
        if not torch.cuda.is_available():
            raise RuntimeError("this Python's torch sees no CUDA device")
        compiled = torch.compile(flex.flex_attention, dynamic=False)
    except Exception as error:
        return record(records, "all of it", "skipped", why=f"not measured: {error!r}")
    lines = [json.loads(line) for line in open(shapes)]
    for shape in lines:
        if not shape.get("attzoo_ms") or shape["pattern"] == "causal by a callable":
            continue
        if time.monotonic() > end:
            record(records, shape["name"], "skipped", why="out of time")
            continue
        torch._dynamo.reset()  # or it gives up after some shapes
        try:
            record(records, shape["name"], "passed", flex_ms=measure(shape, torch, flex, compiled))
        except Exception as error:
            record(records, shape["name"], "skipped", why=f"not measured: {str(error)[:500]}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
