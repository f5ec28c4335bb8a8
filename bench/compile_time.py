#!/usr/bin/env python3
"""What it costs to compile a file that uses attzoo: CPU seconds and peak memory of g++ -O2.

    bench/compile_time.py [--compiler g++] [--repeat 1] [--torch FOLDER] [--only compiled]

Every file is compiled in turn with a floor, a file that includes of LibTorch what any module needs,
and its seconds are given beside those of that floor, for machines get busy. `one more combination`
is the difference between two files, of which one calls attention() with a named combination of
modifiers and with a lambda that the other has not, forward and backward. Of several rounds
(--repeat) the least times count. Exit status 1 if a target is missed. Header-only, the targets are
what it costs to compile the kernels; who minds links attzoo::compiled.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

FLOOR = """
#include <torch/nn/module.h>
#include <torch/nn/modules/linear.h>
"""

ONE = """
#include <attzoo/multi_head.hpp>
void run(const torch::Tensor& x) {
  attzoo::MultiHeadSelfAttention attn({.d_model = 64, .num_heads = 4});
  attn(x, {.causal = true}).output.sum().backward();
}
"""

ALL = """
#include <attzoo/attzoo.hpp>
using namespace attzoo;
void run(const torch::Tensor& x) {
  const auto use = [&](auto module) { module(x, {.causal = true}).output.sum().backward(); };
  const MultiHeadSelfAttention multi_head({.d_model = 64, .num_heads = 4});
  const LocalSelfAttention local({.d_model = 64});
  use(VanillaSelfAttention({.d_model = 64}));
  use(multi_head);
  use(GroupedSelfAttention({.d_model = 64, .num_query_heads = 4, .num_kv_heads = 2}));
  use(local);
  use(DilatedSelfAttention({.d_model = 64}));
  use(BlockSelfAttention({.d_model = 64}));
  use(ALiBiSelfAttention({.d_model = 64, .num_heads = 4}));
  use(LinearSelfAttention({.d_model = 64}));
  use(LSHSelfAttention({.d_model = 64, .num_heads = 4}));
  use(LongformerSelfAttention({.d_model = 64, .num_heads = 4}));
  use(gated(multi_head));
  use(combined(multi_head, local));
}
"""

CALLS = """
#include <attzoo/functional/attention.hpp>
#include <attzoo/functional/modifiers.hpp>
using namespace attzoo;
void run(const torch::Tensor& q) {
  attention(q, q, q, causal()).output.sum().backward();
%s}
"""
TWO_CALLS = """\
  attention(q, q, q, window(3, 0) && dilated(2), softcap(30.0)).output.sum().backward();
  attention(q, q, q, mask_mod([](auto, auto, auto i, auto j) { return i - j < 5; }))
      .output.sum().backward();
"""


def find_torch():
    """The LibTorch of a build of this checkout, or the one that such a build installed."""
    cache = ROOT / "build" / "CMakeCache.txt"
    if cache.exists():
        found = re.search(r"^ATTZOO_TORCH_ROOT:INTERNAL=(.+)$", cache.read_text(), re.M)
        if found:
            return Path(found.group(1))
    installed = sorted(ROOT.glob(".libtorch/*/torch"))
    if not installed:
        sys.exit("compile_time.py: no LibTorch in .libtorch/ or build/; give its folder by --torch")
    return installed[-1]


class Bench:
    def __init__(self, compiler, torch, folder):
        self.folder = Path(folder)
        self.command = [compiler, "-std=c++20", "-O2", "-fopenmp", "-c", "-I", ROOT / "include",
                        "-isystem", torch / "include",
                        "-isystem", torch / "include/torch/csrc/api/include"]

    def compile(self, label, source, flags=()):
        """CPU seconds and peak bytes of the compiler proper, the largest of its processes."""
        path = self.folder / "file.cpp"
        path.write_text(source)
        print(f"{label:52}", end="", flush=True)
        process = subprocess.Popen([*self.command, *flags, path, "-o", self.folder / "file.o"])
        _, status, usage = os.wait4(process.pid, 0)
        if status != 0:
            sys.exit(f"\ncompile_time.py: {label} does not compile")
        seconds, memory = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
        print(f"{seconds:6.1f} s {memory / 1e9:6.2f} GB", flush=True)
        return seconds, memory

    def beside_floor(self, label, source, flags):
        floor, _ = self.compile(f"  floor, beside {label}", FLOOR)
        seconds, memory = self.compile(f"  {label}", source, flags)
        return floor, seconds, memory


def least(results):
    """Of several (floor, seconds, memory): that with the least seconds beyond the floor."""
    return min(results, key=lambda r: r[1] - r[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compiler", default="g++")
    parser.add_argument("--repeat", type=int, default=1, help="rounds, of which the least counts")
    parser.add_argument("--torch", type=Path, help="LibTorch's folder, with include/ and lib/")
    parser.add_argument("--only", choices=("header-only", "compiled"), help="one way alone")
    arguments = parser.parse_args()

    ways = [("header-only", (), 45, 60, None), ("compiled", ("-DATTZOO_COMPILED",), 3, 8, 1.5e9)]
    rows, missed = [], False

    def add(what, floor, seconds, beyond, target, memory="", most=None):
        nonlocal missed
        late = beyond > target or (most is not None and memory > most)
        missed |= late
        gigabytes = f"{memory / 1e9:.2f}" if memory else ""
        gigabytes += f" (<= {most / 1e9:.1f})" if most else ""
        rows.append((what, f"{floor:.1f}", f"{seconds:.1f}", f"{beyond:+.1f}", f"<= {target}",
                     gigabytes, "MISSED" if late else "ok"))

    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments.compiler, arguments.torch or find_torch(), folder)
        rounds = range(max(1, arguments.repeat))
        for way, flags, one, all_, most in ways:
            if arguments.only not in (None, way):
                continue
            for label, source, target in ("one mechanism", ONE, one), ("twelve mechanisms", ALL, all_):
                what = f"{way}, {label}"
                floor, seconds, memory = least(
                    [bench.beside_floor(what, source, flags) for _ in rounds])
                add(what, floor, seconds, seconds - floor, target, memory,
                    most if source is ALL else None)
            what = f"{way}, one more combination"
            pairs = []
            for _ in rounds:
                few, _ = bench.compile(f"  {what}: without", CALLS % "", flags)
                many, _ = bench.compile(f"  {what}: with two", CALLS % TWO_CALLS, flags)
                pairs.append(((many - few) / 2, few, many))
            each, few, many = min(pairs)
            add(what, few, many, each, 1.5)

    heads = ("", "floor s", "file s", "beyond s", "target s", "peak GB", "")
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    print()
    for row in [heads, *rows]:
        print("  ".join(cell.ljust(w) if i in (0, 6) else cell.rjust(w)
                        for i, (cell, w) in enumerate(zip(row, widths))).rstrip())
    print("\nOf one more combination the floor is the file without it, and `beyond` a half of what\n"
          "two more cost, a named one and a lambda, each forward and backward.")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
