#!/usr/bin/env python3
"""The Python library attzoo beside attzoo_bench: the same mechanisms and sizes.

    pip install torch numpy attzoo==0.1.0    # Python >= 3.12
    cmake --build --preset bench
    python bench/peers/python_attzoo.py --attzoo build/bench

Batch 1, d_model 512, 8 heads, float32; forward, and forward + backward; least of several runs, in ms,
and how many times faster attzoo is. Its LinearSelfAttention has one head, ours here 8.
"""
import argparse
import os

import attzoo
import torch
from peers import D_MODEL, HEADS, attzoo_bench_times, both_ways, tokens

NO_DROPOUT = dict(dropout=0.0)
HEADED = dict(num_heads=HEADS, **NO_DROPOUT)


def multi_head():
    return attzoo.MultiHeadSelfAttention(D_MODEL, **HEADED)


def local():
    return attzoo.LocalSelfAttention(D_MODEL, window_size=128, **HEADED)


MECHANISMS = {  # as attzoo_bench names them
    "vanilla": lambda: attzoo.VanillaSelfAttention(D_MODEL, **NO_DROPOUT),
    "multi_head": multi_head,
    "grouped": lambda: attzoo.GroupedSelfAttention(D_MODEL, HEADS, HEADS // 2, **NO_DROPOUT),
    "local_128": local,
    "dilated_4": lambda: attzoo.DilatedSelfAttention(D_MODEL, dilation_rate=4, **HEADED),
    "linear": lambda: attzoo.LinearSelfAttention(D_MODEL, **NO_DROPOUT),
    "lsh_64": lambda: attzoo.LSHSelfAttention(D_MODEL, bucket_size=64, **HEADED),
    "block_128": lambda: attzoo.BlockSelfAttention(D_MODEL, block_size=128, **HEADED),
    "alibi": lambda: attzoo.AlibiSelfAttention(D_MODEL, max_seq_len=1 << 14, **HEADED),
    "longformer_128_g16": lambda: attzoo.LongformerSelfAttention(D_MODEL, window_size=128, **HEADED),
    "gated": lambda: attzoo.GatedSelfAttention(multi_head()),
    "combined": lambda: attzoo.CombinedAttention(local(), multi_head()),
}


def caller(name, n):
    module = MECHANISMS[name]()
    if name.startswith("longformer"):
        is_global = torch.arange(n)[None] < 16
        return lambda x: module(x, global_attention=is_global)[0]
    return lambda x: module(x)[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attzoo", required=True, help="folder of attzoo_bench")
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--mechanisms", nargs="+", default=list(MECHANISMS))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {args.threads} threads: the Python library's time, times faster")
    for n in args.lengths:
        for name in args.mechanisms:
            theirs = both_ways(lambda name=name, n=n: caller(name, n), tokens(n), repeats=2)
            ours = attzoo_bench_times(args.attzoo, name, n, args.threads)
            columns = [f"{a:9.1f} ms {a / b:6.1f}x" for a, b in zip(theirs, ours, strict=True)]
            print(f"{name:20} {n:6}", *columns, flush=True)


if __name__ == "__main__":
    main()
