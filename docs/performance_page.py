"""Writes performance.md, its pictures, and the curves on the mechanisms' pages, all from
performance/data.json and later.json, which bench/run measures: `bench/run --write`.
"""

import json
import math
import re
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot, ticker  # noqa: E402

WIDTH, HEADS, GLOBAL = 512, 8, 16  # of the modules in attzoo_bench
PACKED = (1024, 640, 480, 384, 256, 224, 160, 108)  # tokens of its sequences
DTYPES = {"f32": "float32", "bf16": "bfloat16"}
PATTERNS = {"window64": "window ± 64", "blocks128": "blocks of 128", "dilated4": "each 4th key",
            "gqa8to2": "8 heads on 2", "alibi": "ALiBi"}
MODIFIERS = {"alibi_over_plain": "ALiBi", "softcap_lambda_over_plain": "a softcap, written as a lambda"}
DECODED = {"mha": "8 heads", "gqa": "32 heads on 8"}
PEERS = {"FlexAttention": "window(64, 64)", "lucidrains": "window(64, 64)",  # another library's row to ours
         "Longformer": "LongformerSelfAttention", "Reformer": "LSHSelfAttention",
         "BigBird": "BigBirdSelfAttention", "Nyströmformer": "NystromSelfAttention",
         "performer": "PerformerSelfAttention", "attention, dense": "attention(), dense",
         "attention, causal": "attention(), causal",
         "gated delta rule": "recurrence()"}
RULES = {"plain": "no decay", "tokens": "decay of tokens", "channels": "decay of channels",
         "delta": "delta rule", "gated_delta": "gated delta rule", "kimi_delta": "Kimi delta attention",
         "rwkv7": "RWKV-7"}
MULTI_HEAD, TORCH = "multi_head", "torch_nn_MultiheadAttention"
# Of each recurrence: how many products of WIDTH x WIDTH its projections are, the numbers of its state in
# all heads as multiples of WIDTH^2 / HEADS, and how often a token reads or writes them.
RECURRENCES = {"delta_net": (4, 1, 3), "gated_delta_net": (5, 1, 3), "gated_linear": (4, 0.5, 2),
               "kimi_delta": (4.5, 1, 3), "lightning": (5, 1, 2), "mamba2": (6.3, 2, 2),
               "retention": (8, 2, 2), "rwkv7": (4.6, 1, 4)}
CHOOSING = ("big_bird", "indexed", "linformer", "moba", "multi_head_latent", "native_sparse", "neighborhood",
            "nystrom", "performer", "streaming")  # or projecting: no share of mm is told of them


# ---- the measurements ------------------------------------------------------------------------------


class Results:
    """A sitting's file, and what the page says of it in more than one place."""

    def __init__(self, path):
        self.later = path.stem == "later"  # only of some mechanisms
        self.data = json.loads(path.read_text())
        self.threads = self.data["threads"]
        self.found = {name: counters for program in self.data["results"].values()
                      for name, counters in program.items()}
        self.compared, self.limited = 0, 0  # figures so far
        self.losses, self.low = [], []  # (what, against, ratio, spread) and (what, limit, share)

    def names(self, pattern):
        """[(name, match)] of benchmarks, in their order."""
        return [(name, m) for name in self.found if (m := re.fullmatch(pattern, name))]

    def rounds(self, name, counter):
        """The counter in each round, [] where it was not measured."""
        return self.found.get(name, {}).get(counter, [])

    def least(self, name, counter):
        """The least of all rounds, None where it was not measured."""
        return min(self.rounds(name, counter), default=None)

    def spread(self, names, counter):
        """The largest of the rounds' least times over the smallest, where this is worst; None for
        one round."""
        of_names = [v for name in names if len(v := self.rounds(name, counter)) > 1]
        return max((max(v) / min(v) for v in of_names), default=None)

    def peak(self, dtype, threads=None):
        """FLOP/s of the fastest mm(1024) of the sitting, on so many threads."""
        found = [max(self.rounds(name, "mm_gflops"))
                 for name, _ in self.names(f"{dtype}/.*/threads:{threads or self.threads}")]
        return max(found) * 1e9 if found else None

    def ratio(self, what, against, theirs, ours, spread):
        """A cell: how many times faster than another. What is slower, the page lists."""
        if theirs is None or ours is None:
            return ""
        ratio = theirs / ours
        self.compared += 1
        if ratio < 1:
            self.losses.append((what, against, ratio, spread))
        return f"**{ratio:.2f}**" if ratio < 1 else times(ratio)

    def share(self, what, limit, share):
        """A cell: the share of a limit of the machine. What is below a half, the page lists."""
        if share is None:
            return ""
        self.limited += 1
        if share < 0.5:
            self.low.append((what, limit, share))
        return f"{share:.2f}"


def number(x):
    """Three digits, or all before the point."""
    if x is None:
        return ""
    return f"{x:,.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}" if x >= 1 else f"{x:.3f}"


def times(ratio):
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}" if ratio >= 3 else f"{ratio:.2f}"


def spread_cell(spread):
    return "" if spread is None else f"{spread:.2f}"


def table(head, rows):
    """Markdown; the first column is text, the others are numbers."""
    if not rows:
        return "Not measured."
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def commands(results, name):
    """The commands of a table, as they ran."""
    lines = []
    for c in results.data["commands"]:
        if c["table"] == name:
            limit = f" --iterations={c['iterations']}" if c["iterations"] else ""
            lines.append(f"OMP_NUM_THREADS={results.threads} build/bench/{c['program']}{limit} "
                         f"--benchmark_filter='{c['filter']}'  # rounds: {c['rounds']}")
    return "\n".join(["```sh", *lines, "```"]) if lines else ""


# ---- attention() ----------------------------------------------------------------------------------


ONE_THREAD = ", one thread"


def core_rows(results, patterns, label, threads=None):
    """A row for every length and head_dim of these patterns, both directions."""
    rows, of_threads = [], ONE_THREAD if threads == 1 else ""
    pattern = rf"(\w+)/({patterns})/forward/n:(\d+)/D:(\d+)/threads:{threads or results.threads}"
    for forward, m in results.names(pattern):
        dtype, pattern, n, d = m.groups()
        names = forward, forward.replace("/forward/", "/backward/")
        spread = results.spread(names, "own_ms")
        row = [label(dtype, pattern), f"{int(n):,}", d]
        for name, direction in zip(names, ("forward", "backward")):
            what = (f"`attention()`, {DTYPES[dtype]}, {PATTERNS.get(pattern, pattern)}, n {n}, D {d}, "
                    f"{direction}{of_threads}")
            own, aten = (results.least(name, c) for c in ("own_ms", "aten_ms"))
            rate = max(results.rounds(name, "gflops")) * 1e9
            of_direction = results.spread([name], "own_ms")
            row += [number(own), results.ratio(what, "ATen", aten, own, of_direction),
                    results.share(what, f"mm, {DTYPES[dtype]}", rate / results.peak(dtype, threads))]
        rows.append([*row, spread_cell(spread)])
    return rows


CORE_HEAD = ["", "n", "D", "forward, ms", "ATen / ours", "of mm", "backward, ms", "ATen / ours", "of mm",
             "spread"]


def core(results, threads=None):
    return table(CORE_HEAD, core_rows(
        results, "dense|causal", lambda dtype, pattern: f"{DTYPES[dtype]}, {pattern}", threads))


def patterns(results):
    return table(CORE_HEAD, core_rows(
        results, "|".join(PATTERNS), lambda dtype, pattern: f"{DTYPES[dtype]}, {PATTERNS[pattern]}"))


def modifiers(results):
    rows = []
    for name, m in results.names(r"f32/(\w+_over_plain)/forward/.*"):
        row = [MODIFIERS[m[1]]]
        for of_direction in (name, name.replace("/forward/", "/backward/")):
            own, plain = (results.least(of_direction, c) for c in ("own_ms", "aten_ms"))
            row.append(f"{100 * (own / plain - 1):+.0f} %")
        rows.append(row)
    return table(["float32, n 4,096, D 64", "forward", "backward"], rows)


# ---- decoding -------------------------------------------------------------------------------------


def decode_cases(results, threads=None):
    pattern = rf"decode/({'|'.join(DTYPES)})/(\w+)/S:(\d+)/D:(\d+)/B:1/L:1/threads:{threads or results.threads}"
    for name, m in results.names(pattern):
        dtype, heads, s, d = m[1], m[2], int(m[3]), int(m[4])
        yield name, dtype, heads, s, d, 2 * 8 * s * d * (4 if dtype == "f32" else 2)  # bytes of K and V


def decode(results, threads=None):
    rows, of_threads = [], ONE_THREAD if threads == 1 else ""
    for name, dtype, heads, s, d, size in decode_cases(results, threads):
        own, aten, read = (results.least(name, c) for c in ("own_us", "aten_us", "read_us"))
        spread = results.spread([name], "own_us")
        what = f"one query, {DTYPES[dtype]}, {DECODED[heads]}, S {s}, D {d}{of_threads}"
        rows.append([f"{DTYPES[dtype]}, {DECODED[heads]}", f"{s:,}", d, number(own),
                     results.ratio(what, "ATen", aten, own, spread),
                     results.share(what, "reading K and V", read / own), number(size / own / 1e3),
                     spread_cell(spread)])
    return table(["", "S", "D", "µs", "ATen / ours", "of reading", "GB/s", "spread"], rows)


EIGHT_BITS = {"i8": "int8", "f8": "float8_e4m3fn"}


def decode_8_bits(results):
    """Caches of 8 bits, against those of bfloat16."""
    rows = []
    pattern = rf"decode/({'|'.join(EIGHT_BITS)})/(\w+)/S:(\d+)/D:(\d+)/B:1/L:1/threads:{results.threads}"
    for name, m in results.names(pattern):
        dtype, heads, s, d = EIGHT_BITS[m[1]], DECODED[m[2]], int(m[3]), int(m[4])
        own, wide, read = (results.least(name, c) for c in ("own_us", "bf16_us", "read_us"))
        spread, what = results.spread([name], "own_us"), f"one query, {dtype}, {heads}, S {s}, D {d}"
        rows.append([f"{dtype}, {heads}", f"{s:,}", d, number(own), times(wide / own),
                     results.share(what, "reading K and V", read / own), spread_cell(spread)])
    return table(["", "S", "D", "µs", "bfloat16's / ours", "of reading", "spread"], rows)


def read_speed(results, size):
    """Bytes a µs at which K and V of the nearest size were merely read; they fit the same caches."""
    speeds = [(of_case, of_case / results.least(name, "read_us"))
              for name, *_, of_case in decode_cases(results)]
    nearest = min((of_case for of_case, _ in speeds), key=lambda of_case: abs(math.log(of_case / size)))
    return max(speed for of_case, speed in speeds if of_case == nearest)


def step_bytes(mechanism, state):
    """What one step must read, float32: the projections, and of the state what it visits; None for
    those whose work() is None."""
    if mechanism in CHOOSING:
        return None
    weights = 4 * WIDTH * WIDTH * 4 * {"grouped": 0.75, "combined": 2}.get(mechanism, 1)
    if mechanism in RECURRENCES:
        weights = 4 * WIDTH * WIDTH * RECURRENCES[mechanism][0]
    visited = {"dilated": state / 4, "lsh": min(state, 128 * 2 * WIDTH * 4)}.get(mechanism, state)
    return weights + visited


def steps(results):
    found = results.names(r"step/(\w+)/context:(\d+)")
    contexts = sorted({int(m[2]) for _, m in found})
    rows = []
    for mechanism in dict.fromkeys(m[1] for _, m in found):
        names = {c: f"step/{mechanism}/context:{c}" for c in contexts}
        micros = {c: results.least(name, "step_us") for c, name in names.items()}
        longest = max(c for c in contexts if micros[c])
        state = results.least(names[longest], "state_bytes")
        read = step_bytes(mechanism, state)
        what = f"a step of `{mechanism}` behind {longest} tokens"
        share = read and read / read_speed(results, read) / micros[longest]
        rows.append([mechanism, *(number(micros[c]) for c in contexts), number(state / 1e6),
                     results.share(what, "reading weights and state", share),
                     spread_cell(results.spread(names.values(), "step_us"))])
    return table(["µs behind so many tokens", *(f"{c:,}" for c in contexts), "state, MB", "of reading",
                  "spread"], rows)


# ---- mechanisms -----------------------------------------------------------------------------------


def work(name, n):
    """FLOP of the definition, forward and forward + backward: projections and products of pairs. None
    for those whose work is more than that."""
    sizes = [int(size) for size in re.findall(r"_g?(\d+)", name)]
    kind = re.sub(r"_g?\d.*", "", name)  # digits that belong to a name follow no _
    if kind in RECURRENCES:
        layers, state, visits = RECURRENCES[kind]
        layers, products = layers * 2 * n * WIDTH**2, visits * 2 * n * state * WIDTH**2 / HEADS
        return layers + products, 3 * (layers + products)
    if kind in CHOOSING:
        return None, None
    window = {"local": 1, "longformer": 1, "lsh": 1, "block": 0}.get(kind)
    pairs = n * n
    if window is not None:
        pairs = n * min(n, sizes[0] + (window if kind != "lsh" else sizes[0] + 1))
    if kind == "longformer":
        pairs += 2 * GLOBAL * n
    elif kind == "dilated":
        pairs = n * n / sizes[0]
    elif kind == "combined":
        pairs = n * n + n * min(n, 129)
    elif kind in ("forgetting", "stick_breaking"):  # causal
        pairs = n * n / 2
    elif kind == "differential":  # values of twice the features
        pairs = n * n * 1.5
    products, backward = 4 * WIDTH * pairs, 2.5
    if kind.startswith("linear"):  # sums of k v^T, and q times these
        products, backward = 4 * n * WIDTH * (WIDTH / HEADS), 2
    projections = 8 * n * WIDTH * WIDTH * {"grouped": 0.75, "combined": 2}.get(kind, 1)
    return projections + products, 3 * projections + (1 + backward) * products


def modules(results):
    """The names of the mechanisms as attzoo_bench has them."""
    found = results.names(r"(\w+)/forward_backward/\d+")
    return [name for name in dict.fromkeys(m[1] for _, m in found) if name not in (TORCH, "aten_sdpa")]


def curve(results, name, counter="least_ms"):
    """{n: value}, forward + backward."""
    found = results.names(re.escape(name) + r"/forward_backward/(\d+)")
    return {int(m[1]): results.least(full, counter) for full, m in found}


def main_length(results):
    """The n at which the tables compare mechanisms."""
    return min(4096, max(curve(results, MULTI_HEAD)))


def mechanisms(results):
    n, longest, rows = main_length(results), max(curve(results, MULTI_HEAD)), []
    for name in modules(results):
        row = [name]
        for i, direction in enumerate(("forward", "forward_backward")):
            what = f"`{name}`, n {n}, {direction.replace('_', ' + ')}"
            own, eager = results.least(f"{name}/{direction}/{n}", "least_ms"), f"vs_eager/{name}/{direction}"
            theirs, beside = (results.least(eager, c) for c in ("eager_ms", "own_ms"))
            spread = results.spread([eager], "own_ms")
            flops = work(name, n)[i]
            share = flops and flops / own / 1e-3 / results.peak("f32")
            row += [number(own), results.ratio(what, "its eager reference", theirs, beside, spread),
                    results.share(what, "mm, float32", share)]
        of_n, growth = curve(results, name), ""
        if longest // 4 in of_n:
            growth = f"{math.log(of_n[longest] / of_n[longest // 4], 4):.2f}"
        names = [f"{name}/{direction}/{n}" for direction in ("forward", "forward_backward")]
        rows.append([*row, number(curve(results, name, "peak_bytes")[n] / 1e6), growth,
                     spread_cell(results.spread(names, "least_ms"))])
    return table([f"n {n:,}", "forward, ms", "eager / ours", "of mm", "forward + backward, ms", "eager / ours",
                  "of mm", "peak, MB", f"k, {longest // 4:,} to {longest:,}", "spread"], rows)


def against_torch(results):
    """multi_head beside torch::nn::MultiheadAttention, forward + backward."""
    rows, ours, theirs = [], curve(results, MULTI_HEAD), curve(results, TORCH)
    memory, their_memory = (curve(results, name, "peak_bytes") for name in (MULTI_HEAD, TORCH))
    for n in theirs:
        names = [f"{name}/forward_backward/{n}" for name in (MULTI_HEAD, TORCH)]
        spread = results.spread(names, "least_ms")
        what = f"`{MULTI_HEAD}`, n {n}, forward + backward"
        rows.append([f"{n:,}", number(ours[n]), number(theirs[n]),
                     results.ratio(what, "`torch::nn::MultiheadAttention`", theirs[n], ours[n], spread),
                     number(memory[n] / 1e6), number(their_memory[n] / 1e6), spread_cell(spread)])
    return table(["n", "ours, ms", "torch's, ms", "torch's / ours", "ours, MB", "torch's, MB", "spread"], rows)


def packed(results):
    rows = []
    for forward, m in results.names(r"packed/(\w+)/forward"):
        row, names = [m[1]], (forward, forward + "_backward")
        for i, name in enumerate(names):
            what = f"packed `{m[1]}`, {'forward + backward' if i else 'forward'}"
            own, padded = (results.least(name, c) for c in ("packed_ms", "padded_ms"))
            flops, spread = [work(m[1], n)[i] for n in PACKED], results.spread([name], "packed_ms")
            share = all(flops) and sum(flops) / own / 1e-3 / results.peak("f32")
            row += [number(own), results.ratio(what, "the padded batch", padded, own, spread),
                    results.share(what, "mm, float32", share or None)]
        rows.append([*row, spread_cell(results.spread(names, "packed_ms"))])
    return table(["", "forward, ms", "padded / ours", "of mm", "forward + backward, ms", "padded / ours",
                  "of mm", "spread"], rows)


# ---- recurrence() ---------------------------------------------------------------------------------


def recurrences(results):
    """Each rule's two directions, against causal linear attention."""
    rows = []
    for forward, m in results.names(r"(\w+)/forward/(f32|bf16)/H:([\d:]+)/D:(\d+)/n:(\d+)/.*"):
        rule, dtype, heads, d, n = m.groups()
        row = [f"{DTYPES[dtype]}, {RULES[rule]}", heads.replace(":", " / "), d, f"{int(n):,}"]
        names = forward, forward.replace("/forward/", "/forward_backward/")
        for name in names:
            own, linear = (results.least(name, c) for c in ("own_ms", "linear_ms"))
            row += [number(own), f"{own / linear:.2f}" if own else ""]
        rows.append([*row, spread_cell(results.spread(names, "own_ms"))])
    return table(["", "H / HV", "D", "n", "forward, ms", "of linear", "forward + backward, ms", "of linear",
                  "spread"], rows)


def recurrence_tokens(results):
    rows = []
    for name, m in results.names(r"(\w+)/token/(f32|bf16)/H:([\d:]+)/D:(\d+)/n:.*"):
        rule, dtype, heads, d = m.groups()
        own, copy = (results.least(name, c) * 1e3 for c in ("own_ms", "copy_ms"))
        what = f"a token of recurrence(), {DTYPES[dtype]}, {RULES[rule]}, H {heads.replace(':', ' / ')}, D {d}"
        rows.append([f"{DTYPES[dtype]}, {RULES[rule]}", heads.replace(":", " / "), d, number(own),
                     results.share(what, "copying its state", copy / own),
                     spread_cell(results.spread([name], "own_ms"))])
    return table(["", "H / HV", "D", "µs", "copying its state / ours", "spread"], rows)


WHAT = {"prompt": "a prompt", "window_128": "a window of 128", "chunk": "a chunk of a prompt",
        "token": "a token", "drafts": "four drafts"}


def vllm_attention(results):
    rows = []
    for name, m in results.names(r"vllm/(\w+)/(\w+)/H:([\d:]+)/D:(\d+)/L:(\d+)/S:(\d+)/threads:(\d+)"):
        what, dtype, heads, d, queries, keys, threads = m.groups()
        own, theirs = (results.least(name, c) for c in ("own_ms", "vllm_ms"))
        spread, heads = results.spread([name], "own_ms"), heads.replace(":", " / ")
        full = f"{WHAT[what]}, {DTYPES[dtype]}, H {heads}, D {d}, {queries} of {keys}{ONE_THREAD if threads == '1' else ''}"
        rows.append([f"{DTYPES[dtype]}, {WHAT[what]}", heads, d, f"{int(queries):,}", f"{int(keys):,}",
                     threads, number(own), results.ratio(full, "vLLM", theirs, own, spread), spread_cell(spread)])
    return table(["", "H / Hkv", "D", "queries", "keys", "threads", "ms", "vLLM / ours", "spread"], rows)


def vllm(results):
    rows = []
    for name, m in results.names(r"vllm/(\w+)/(\w+)/H:([\d:]+)/D:(\d+)/n:(\d+)/threads:(\d+)"):
        rule, dtype, heads, d, n, threads = m.groups()
        own, theirs = (results.least(name, c) for c in ("own_ms", "vllm_ms"))
        spread = results.spread([name], "own_ms")
        what = f"{RULES[rule]}, {DTYPES[dtype]}, H {heads.replace(':', ' / ')}, D {d}, n {n}, forward"
        rows.append([f"{DTYPES[dtype]}, {RULES[rule]}", heads.replace(":", " / "), d, f"{int(n):,}", threads,
                     number(own), results.ratio(what, "vLLM", theirs, own, spread), spread_cell(spread)])
    return table(["", "H / HV", "D", "n", "threads", "forward, ms", "vLLM / ours", "spread"], rows)


def peers(results):
    data = results.data["peers"]
    if "why" in data:
        return f"Not measured in this sitting: {data['why']}."
    def own_key(name):
        return next((own for other, own in PEERS.items() if other in name), None)

    own = {(key, n): ms for name, n, *ms in data["rows"] for key in PEERS.values()
           if name.startswith("attzoo") and key in name}
    rows = []
    for name, n, *ms in data["rows"]:
        row, key = [name, f"{n:,}"], None if name.startswith("attzoo") else own_key(name)
        for i, theirs in enumerate(ms):
            if isinstance(theirs, str):  # why there is no time
                row += [theirs, ""]
                continue
            what = f"attzoo {key}, n {n}, {'forward + backward' if i else 'forward'}"
            ours = own.get((key, n), (None, None))[i]
            row += [number(theirs), results.ratio(what, name, theirs, ours, None)]
        rows.append(row)
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    when = f"; {data['when']}" if "when" in data else ""
    return (f"{versions}; float32, {data['threads']} threads, least of 5{when}.\n\n" + table(
        ["", "n", "forward, ms", "its / ours", "forward + backward, ms", "its / ours"], rows))


# ---- pictures -------------------------------------------------------------------------------------

GREY = "#808080"  # readable on white and on black, as all of these
COLOURS = ["#3b82c4", "#d9822b", "#4a9d5f", "#b55fc0", "#c9514f", "#2aa5a0", "#9a8b2f"]
matplotlib.rcParams.update({
    "svg.fonttype": "none", "svg.hashsalt": "attzoo", "savefig.transparent": True, "font.size": 9,
    "text.color": GREY, "axes.labelcolor": GREY, "axes.edgecolor": GREY, "axes.titlecolor": GREY,
    "axes.titlesize": 9, "xtick.color": GREY, "ytick.color": GREY, "axes.grid": True, "grid.color": GREY,
    "grid.alpha": 0.25, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    "lines.linewidth": 1.6, "lines.markersize": 3, "figure.constrained_layout.use": True})


def length(n, _=None):
    return f"{n / 1024:g}k" if n >= 1024 else f"{n:g}"


def panel(axes, title, lines, log_y=True):
    """`lines`: [(label, {x: y}, style)]."""
    for label, points, style in lines:
        axes.plot(points.keys(), points.values(), marker="o", label=label, **style)
    axes.set_title(title)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(ticker.FixedLocator([256 * 4**i for i in range(5)]))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(length))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    if log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: f"{y:,g}"))
        axes.yaxis.set_minor_locator(ticker.NullLocator())
    else:  # ratios, equal at 1
        axes.axhline(1, color=GREY, linewidth=1)
        axes.set_ylim(bottom=0)


def draw(path, rows, log_y=True, size=(7.2, 2.6), columns=None):
    """Rows {title: panels side by side}, each with one legend below."""
    figure = pyplot.figure(figsize=size)
    parts = figure.subfigures(len(rows)) if len(rows) > 1 else [figure]
    for part, (row_title, panels) in zip(parts, rows.items()):
        part.suptitle(row_title, fontsize=9)
        all_axes = part.subplots(1, len(panels))
        for axes, (title, lines) in zip(all_axes, panels):
            panel(axes, title, lines, log_y)
        handles, labels = all_axes[0].get_legend_handles_labels()
        part.legend(handles, labels, loc="outside lower center", ncols=columns or len(labels))
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)


def curves(results, styles):
    """Panels of time and peak memory, forward + backward, of the modules {name: (label, style)}."""
    return [(title + ", against n", [
        (label, {n: value / unit for n, value in curve(results, name, counter).items()}, style)
        for name, (label, style) in styles.items()])
        for title, counter, unit in (("time, ms", "least_ms", 1), ("peak memory, MB", "peak_bytes", 1e6))]


OTHER = {"color": GREY, "linestyle": "--"}


def colours(names):
    """Each colour first as a line, then dotted, then both."""
    return {name: (name, {"color": COLOURS[i % len(COLOURS)], "linestyle": ["-", ":", "-."][i // len(COLOURS)]})
            for i, name in enumerate(names)}


def groups(results, zoo):
    """{heading: names of modules} as mechanisms.md has them, which is the text `zoo`."""
    found = {}
    for heading, section in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", zoo, flags=re.MULTILINE | re.DOTALL):
        pages = re.findall(r"^\| \[`\w+`\]\(mechanisms/(\w+)\.md\)", section, flags=re.MULTILINE)
        if names := [name for page in pages for name in of_page(results, page)]:
            found[heading] = names
    return found


def picture_groups(results, zoo, path):
    """A row of panels for each group of the gallery, a picture of their own for the recurrences."""
    rows = {heading: curves(results, colours(names)) for heading, names in groups(results, zoo).items()
            if RECURRENCES.keys().isdisjoint(names)}
    draw(path, rows, size=(7.2, 3.1 * len(rows)), columns=4)


def picture_later(results, path):
    styles = colours(name for name in modules(results) if name != MULTI_HEAD)
    draw(path, {"": curves(results, styles | {MULTI_HEAD: ("multi-head attention", OTHER)})}, size=(7.2, 3.6), columns=4)


def picture_recurrences(results, path):
    """Its line on the page, none where recurrences were not measured."""
    names = [name for name in modules(results) if name in RECURRENCES]
    if not names:
        return ""
    styles = colours(names) | {MULTI_HEAD: ("multi-head attention", OTHER)}
    draw(path, {"": curves(results, styles)}, size=(7.2, 3.6), columns=5)
    return f"![Time and peak memory of the recurrences](performance/{path.name})\n"


def picture_core(results, path):
    panels = []
    for direction in ("forward", "backward"):
        lines = []
        for i, (dtype, pattern) in enumerate((d, p) for d in DTYPES for p in ("dense", "causal")):
            found = results.names(rf"{dtype}/{pattern}/{direction}/n:(\d+)/D:64/threads:{results.threads}")
            points = {int(m[1]): results.least(name, "aten_ms") /
                      results.least(name, "own_ms") for name, m in found}
            lines.append((f"{DTYPES[dtype]}, {pattern}", points, {"color": COLOURS[i]}))
        panels.append((f"{direction}: ATen's time / ours, against n", lines))
    draw(path, {"": panels}, log_y=False)


def picture_decode(results, path):
    panels = []
    largest = max(d for _, _, _, _, d, _ in decode_cases(results))
    for title, counter in (("ATen's time / ours", "aten_us"), ("reading / ours", "read_us")):
        lines = {}
        for name, dtype, heads, s, d, _ in decode_cases(results):
            if d == largest:
                points = lines.setdefault(f"{DTYPES[dtype]}, {DECODED[heads]}", {})
                points[s] = results.least(name, counter) / results.least(name, "own_us")
        panels.append((title + ", against S", [(label, points, {"color": COLOURS[i]})
                                               for i, (label, points) in enumerate(lines.items())]))
    draw(path, {"": panels}, log_y=False)


# ---- pages ----------------------------------------------------------------------------------------


def of_page(results, page):
    """The modules of attzoo_bench that a mechanism's page is about."""
    return [name for name in modules(results) if re.fullmatch(page + r"(_\d+.*|_causal)?", name)]


def mechanism_page(sittings, text, page, folder):
    """The text between <!-- measured --> and <!-- end -->, and its picture, of the first sitting that has it."""
    if "<!-- measured -->" not in text:
        raise SystemExit(f"docs/mechanisms/{page}.md: no place <!-- measured -->; see CONTRIBUTING.md")
    results = next((sitting for sitting in sittings if of_page(sitting, page)), None)
    if not results:
        print(f"docs/mechanisms/{page}.md: not measured")
        return put(text, "measured", NOT_MEASURED)
    names = of_page(results, page)
    other = TORCH if page == MULTI_HEAD else MULTI_HEAD
    title = "torch::nn::MultiheadAttention" if page == MULTI_HEAD else "multi-head attention"
    styles = {name: (name, {"color": COLOURS[i]}) for i, name in enumerate(names)}
    draw(folder / f"{page}.svg", {"": curves(results, styles | {other: (title, OTHER)})})
    lines = []
    for name in names:
        n = min(max(curve(results, name)), max(curve(results, other)))
        own, rival = (curve(results, x)[n] for x in (name, other))
        own_bytes, rival_bytes = (curve(results, x, "peak_bytes")[n] / 1e6 for x in (name, other))
        lines.append([f"`{name}`", f"{n:,}", number(own), number(rival), times(rival / own),
                      number(own_bytes), number(rival_bytes)])
    measured = (f"![Time and peak memory against n](../performance/{page}.svg)\n\n" + table(
        ["", "n", "ms", f"{title}, ms", "times faster", "MB", f"{title}, MB"], lines) +
        f"\n\nForward and backward, batch 1, d_model {WIDTH}, {HEADS} heads, float32, {results.threads} "
        f"threads; [the machine, and all measurements](../performance.md{'#measured-later' * results.later}).")
    return put(text, "measured", measured)


NOT_MEASURED = "Not measured in this sitting of `bench/run`."


def put(text, place, what):
    """The text with `what` between <!-- place --> and <!-- end -->."""
    return re.sub(rf"(<!-- {place} -->\n).*?(<!-- end -->)", lambda m: m[1] + what + "\n" + m[2], text,
                  flags=re.DOTALL)


def gallery(sittings, zoo):
    """mechanisms.md with the column `ms` of its tables: each mechanism's first module, forward + backward, of the
    first sitting that has it."""
    def row(m):
        found = ((sitting, name) for sitting in sittings for name in of_page(sitting, m[2]))
        sitting, name = next(found, (None, None))
        ms = number(sitting and sitting.least(f"{name}/forward_backward/{main_length(sitting)}", "least_ms"))
        return f"{m[1]}{ms} |"

    return re.sub(r"^(\| \[`\w+`\]\(mechanisms/(\w+)\.md\)(?: \|[^|]*){4} \| )[^|]*\|$", row, zoo, flags=re.M)


def recurrences_table(results):
    """The recurrences beside multi-head attention, for mechanisms.md."""
    found = [name for name in modules(results) if name in RECURRENCES]
    if not found:
        return NOT_MEASURED
    n, rows = main_length(results), []
    contexts = [int(m[1]) for _, m in results.names(rf"step/{MULTI_HEAD}/context:(\d+)")]
    behind = max(contexts, default=0)
    for name in [MULTI_HEAD, *found]:
        step = f"step/{name}/context:{behind}"
        state = results.least(step, "state_bytes")
        rows.append([f"`{name}`", number(results.least(f"{name}/forward_backward/{n}", "least_ms")),
                     number(results.least(f"{name}/forward_backward/{n}", "peak_bytes") / 1e6),
                     number(results.least(step, "step_us")), number(state / 1e6 if state else None)])
    return (table(["", "pass, ms", "its peak, MB", "step, µs", "cache, MB"], rows) +
            f"\n\n*pass*: forward and backward, n = {n:,}; *step*: one more token behind {behind:,}; d_model "
            f"{WIDTH}, {HEADS} heads, float32, {results.threads} threads; [the machine, and all "
            "measurements](performance.md).")


def losses(results):
    rows = [[what, against, f"{ratio:.2f}", spread_cell(spread)]
            for what, against, ratio, spread in sorted(results.losses, key=lambda loss: loss[2])]
    text = f"Of {results.compared} comparisons on this page, attzoo is slower in {len(rows)}"
    if not rows:
        return text + "."
    within = sum(bool(spread) and ratio * spread >= 1 for *_, ratio, spread in results.losses)
    return (f"{text}, in {within} of them by less than the spread:\n\n" +
            table(["what", "against", "theirs / ours", "spread"], rows))


def low(results):
    rows = [[what, limit, f"{share:.2f}"] for what, limit, share in sorted(results.low, key=lambda x: x[2])]
    text = (f"Of {results.limited} shares of a limit on this page, {len(rows)} are below one half. The limit "
            "counts products or bytes alone; exponentials, hashes, and what a call costs at all are in the rest")
    return text + (":\n\n" + table(["what", "limit", "share"], rows) if rows else ".")


PAGE = """# Performance

<!-- Written by docs/performance_page.py from performance/*.json; bench/run renews all. -->

Every figure of attzoo on the CPU in one place, measured by `bench/run`, which also writes this page, its pictures and the
curves on the pages of the [mechanisms](mechanisms.md) from [what it measured](performance/data.json).

| | |
|---|---|
{machine}

**How to read it.** All times are the least of all rounds. *Spread* is the largest of the rounds' least times over the
smallest, that of ours, the worst of a row's: two figures that differ by less are equal. `x / ours` is how many times
faster attzoo is; below 1, in bold, it is slower. *of mm* is the share of the FLOP/s of the fastest `mm(1024)` in the
sitting ({peaks}), where 4 D for each pair that the pattern
allows count forward and 10 D backward, and for modules the projections, too. *of reading* is the time that merely
reading the same bytes takes as a share of ours. ATen is LibTorch's `scaled_dot_product_attention`; both run in turn.

## Where attzoo loses

{losses}

How far from the machine's limits: [below](#below-half-of-the-machines-limit).

## attention() against ATen

B = 1, H = 8.

![ATen's time over ours, D = 64](performance/core.svg)

{core}

On one thread:

{core_of_one}

{core_commands}

## Patterns

Where ATen has no name for a pattern it gets a mask, which it reads and visits in full.

{patterns}

What a modifier of the scores costs, against the same call without it:

{modifiers}

{patterns_commands}

## Decoding: one query against a cache

![ATen's time and reading, over ours, D = 128](performance/decode.svg)

{decode}

On one thread:

{decode_of_one}

Of keys and values in 8 bits, with a scale for each head and token; the query is bfloat16:

{decode_8_bits}

{decode_commands}

## Decoding: a step of a module

One token through a module, d_model 512, 8 heads, float32, with a cache.

{steps}

{steps_commands}

## Mechanisms

Batch 1, d_model 512, 8 heads, float32. The eager reference is the definition over n × n scores, of
recurrences token by token; *k* is the exponent of the growth of time, forward + backward, with n; *peak* the most bytes that forward + backward have allocated at once.

![Time and peak memory of all mechanisms](performance/mechanisms.svg)

{picture_recurrences}{mechanisms}

`MultiHeadSelfAttention` against `torch::nn::MultiheadAttention`, forward + backward:

{against_torch}

{mechanisms_commands}

{eager_commands}

{later}## Recurrences

`recurrence()` alone, B = 1; *of linear*: its time as a share of causal linear attention's on the same heads and tokens,
both in turn.

{recurrences}

One token, whose state is written over:

{recurrence_tokens}

{recurrences_commands}

## Packed batches

Eight sequences of up to 1,024 tokens, a batch that is 60 % padding, as one packed row (`documents`) against the padded
batch.

{packed}

{packed_commands}

## Other libraries

vLLM's CPU kernels, on the same tensors and in turn, in one process:

{vllm_attention}

{vllm}

{vllm_commands}

(with `--vllm=` and the path of its library). Others, each in its turn, attzoo first, so that a minute in which the machine
is slower shows: its rows at the end against the tables above.

{peers}

```sh
python bench/peers/peers.py --attzoo build/bench --lengths 4096 --threads {threads} --out peers.json
```

## Below half of the machine's limit

{low}

## To renew this page

`bench/run`, on a machine that does nothing else; see [contributing](contributing.md). `bench/run --write` writes it again
from the same measurements, which must change nothing.
"""


LATER = """## Measured later

These mechanisms came after that sitting; multi-head attention, beside them, is theirs to compare with.

| | |
|---|---|
{machine}

![Time and peak memory of these mechanisms](performance/later.svg)

{mechanisms}

{mechanisms_commands}

{eager_commands}

Other libraries beside them:

{peers}

"""


def machine(results):
    data, versions = results.data, results.data["versions"]
    rows = dict(data["machine"])
    name, family, model = (rows.pop(key, "?") for key in ("Model name", "CPU family", "Model"))
    rows = {"CPU": f"{name}, family {family} model {model}"} | rows
    rows |= {"attzoo": f"{versions['attzoo']}, commit {data['commit']}, kernels {versions['kernels']}",
             "LibTorch": versions["LibTorch"], "Compiler": f"{versions['compiler']}, {versions['built']}",
             "Date": f"{data['date']}, {data['minutes']:.0f} minutes, load before {data['load_before']:.2f}",
             "Rounds": (f"{data['rounds']}, of the longest measurements fewer" if data["rounds"] > 1 else
                        "1: provisional, for the spread is unknown"),
             "Threads": data["threads"],
             "Command": "`bench/run --mechanisms`" if results.later else "`bench/run`"}
    return "\n".join(f"| {key} | {value} |" for key, value in rows.items())


def write(out, docs):
    """Into the folder `out`, from its performance/*.json; the mechanisms' pages are those of `docs`."""
    sittings = [Results(path) for name in ("data", "later") if (path := out / f"performance/{name}.json").exists()]
    results = sittings[0]
    for old in (out / "performance").glob("*.svg"):
        old.unlink()
    picture_core(results, out / "performance/core.svg")
    picture_decode(results, out / "performance/decode.svg")
    zoo = (docs / "mechanisms.md").read_text()
    picture_groups(results, zoo, out / "performance/mechanisms.svg")
    tables = (core, patterns, modifiers, decode, decode_8_bits, steps, mechanisms, against_torch, packed, recurrences,
              recurrence_tokens, vllm_attention, vllm, peers)
    parts = {write_table.__name__: write_table(results) for write_table in tables}
    parts["picture_recurrences"] = picture_recurrences(results, out / "performance/recurrences.svg")
    parts |= {f"{of_one.__name__}_of_one": of_one(results, 1) for of_one in (core, decode)}
    parts["later"] = ""
    for later in sittings[1:]:
        picture_later(later, out / "performance/later.svg")
        parts["later"] = LATER.format(machine=machine(later), mechanisms=mechanisms(later), peers=peers(later), **{
            f"{name}_commands": commands(later, name) for name in ("mechanisms", "eager")})
        results.compared += later.compared
        results.limited += later.limited
        for own, others in ((results.losses, later.losses), (results.low, later.low)):
            own += [(f"{what} (later)", *rest) for what, *rest in others]
    parts |= {f"{name}_commands": commands(results, name)
              for name in ("core", "patterns", "decode", "steps", "mechanisms", "eager", "packed", "recurrences", "vllm")}
    peaks = ", ".join(f"{DTYPES[dtype]} {number(results.peak(dtype) / 1e9)} GFLOP/s"
                      for dtype in DTYPES if results.peak(dtype))
    (out / "performance.md").write_text(PAGE.format(
        machine=machine(results), losses=losses(results), low=low(results), peaks=peaks,
        threads=results.threads, **parts))
    (out / "mechanisms").mkdir(exist_ok=True)
    for page in sorted((docs / "mechanisms").glob("*.md")):
        text = mechanism_page(sittings, page.read_text(), page.stem, out / "performance")
        (out / "mechanisms" / page.name).write_text(text)
    (out / "mechanisms.md").write_text(put(gallery(sittings, zoo), "recurrences", recurrences_table(results)))
    print(f"wrote {out / 'performance.md'}")
