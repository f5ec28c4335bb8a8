#!/usr/bin/env python3
"""Other libraries' attention on the shapes of attzoo_bench, in one sitting.

    pip install -r bench/peers/requirements.txt
    cmake --build --preset bench
    python bench/peers/peers.py --attzoo build/bench --out peers.json

Batch 1, d_model 512, 8 heads, float32; forward, and forward + backward; least of several runs, in ms.
Modules are from tokens to tokens: one whose library has the output projection in another module gets a
linear layer behind it. "Core alone" is of given queries, keys and values, as is the gated delta rule.
Peers that are not installed, or that refuse the work, are listed with the reason in place of a time.
attzoo's own rows come from its benchmarks, run here before the peers. bench/run runs this
for docs/performance.md.
"""
import argparse
import importlib.metadata
import json
import os
import subprocess
import tempfile
import time

import torch

D_MODEL, HEADS = 512, 8
HEAD_DIM = D_MODEL // HEADS


def least_ms(call, repeats=5):
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(f"{min(times) * 1e3:.5g}")


def both_ways(make, inputs, repeats=5):
    """Times make() -> function of `inputs`, forward and forward + backward."""
    function = make()

    def forward():
        with torch.no_grad():
            function(*inputs)

    leaves = [x.detach().clone().requires_grad_() for x in inputs]

    def backward():
        out = function(*leaves)
        out.sum().backward()

    row = [least_ms(forward, repeats)]
    try:
        row.append(least_ms(backward, repeats))
    except Exception as error:  # a peer that cannot train says so in its row
        row.append("no: " + str(error).splitlines()[0][:60])
    return row


def qkv(n):
    return [torch.randn(1, HEADS, n, HEAD_DIM) for _ in range(3)]


def tokens(n):
    return [torch.randn(1, n, D_MODEL)]


def flex_window(n):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    mask = create_block_mask(lambda b, h, q, kv: (q - kv).abs() <= 64, None, None, n, n, device="cpu")
    compiled = torch.compile(flex_attention)
    return lambda q, k, v: compiled(q, k, v, block_mask=mask)


def lucidrains_local(n):
    from local_attention import LocalAttention

    attention = LocalAttention(dim=HEAD_DIM, window_size=64, causal=False, look_backward=1,
                               look_forward=1, autopad=True, use_rotary_pos_emb=False)
    return lambda q, k, v: attention(q, k, v)


def delta_inputs(n):
    """q, k of unit length, v, decays as natural logs, and beta: [1, n, HEADS, ..]."""
    q, k = (torch.nn.functional.normalize(torch.randn(1, n, HEADS, HEAD_DIM), dim=-1) for _ in "qk")
    return [q, k, torch.randn(1, n, HEADS, HEAD_DIM), -0.2 * torch.rand(1, n, HEADS),
            torch.rand(1, n, HEADS)]


def hf_gated_delta(n):
    del n
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

    return lambda q, k, v, g, beta: torch_chunk_gated_delta_rule(q, k, v, g=g, beta=beta)[0]


def mlx_gated_delta(n):
    """MLX has arrays and gradients of its own: its two times."""
    import mlx.core as mx

    mx.set_default_device(mx.cpu)
    inputs = [mx.array(x.numpy()) for x in delta_inputs(n)]
    inputs[3] = mx.exp(inputs[3])

    def loss(*x):
        return mx.fast.gated_delta_update(*x)[0].sum()

    gradients = mx.grad(loss, argnums=list(range(5)))
    return [least_ms(lambda: mx.eval(mx.fast.gated_delta_update(*inputs)), 3),
            least_ms(lambda: mx.eval(gradients(*inputs)), 3)]


NO_GRADIENTS = "no: it has no gradients"


def onnx_node(node, tensors, opset, threads):
    """The times of one operator in ONNX Runtime, which has no gradients."""
    import onnxruntime
    from onnx import TensorProto, helper

    inputs = {name: x.numpy() for name, x in zip(filter(None, node.input), tensors, strict=True)}
    graph = helper.make_graph(
        [node], node.op_type,
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, x.shape) for name, x in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in node.output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=11)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options,
                                           providers=["CPUExecutionProvider"])
    return [least_ms(lambda: session.run(None, inputs), 3), NO_GRADIENTS]


def onnx_gated_delta(n, threads):
    from onnx import helper

    node = helper.make_node("LinearAttention", ["query", "key", "value", "", "decay", "beta"],
                            ["output", "state"], q_num_heads=HEADS, kv_num_heads=HEADS,
                            update_rule="gated_delta")
    return onnx_node(node, [x.flatten(2) for x in delta_inputs(n)], 27, threads)


def onnx_attention(n, threads, causal):
    from onnx import helper

    node = helper.make_node("Attention", ["query", "key", "value"], ["output"], is_causal=causal)
    return onnx_node(node, qkv(n), 23, threads)


def openvino_attention(n, threads, causal):
    """In float32, where OpenVINO would choose bfloat16 by itself on CPUs that have it."""
    import openvino
    from openvino import opset13

    inputs = [x.numpy() for x in qkv(n)]
    parameters = [opset13.parameter(x.shape, openvino.Type.f32) for x in inputs]
    model = openvino.Model([opset13.scaled_dot_product_attention(*parameters, causal=causal)], parameters)
    compiled = openvino.Core().compile_model(model, "CPU", {
        "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"})
    return [least_ms(lambda: compiled(inputs), 3), NO_GRADIENTS]


def with_output(call):
    """A module's call with the output projection that its library has in another module."""
    project = torch.nn.Linear(D_MODEL, D_MODEL)
    return lambda x: project(call(x))


def four_projections(n):
    """What every module does beside its attention."""
    del n
    *inputs, output = (torch.nn.Linear(D_MODEL, D_MODEL) for _ in range(4))
    return lambda x: output(sum(project(x) for project in inputs))


def hf_longformer(n):
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    config = LongformerConfig(hidden_size=D_MODEL, num_attention_heads=HEADS,
                              attention_window=[128], attention_probs_dropout_prob=0.0)
    module = LongformerSelfAttention(config, layer_id=0).eval()
    mask = torch.zeros(1, n)
    mask[:, :16] = 10000.0  # global tokens, in this module's convention
    is_global = mask > 0
    return with_output(lambda x: module(x, attention_mask=mask, is_index_masked=mask < 0,
                                        is_index_global_attn=is_global, is_global_attn=True)[0])


def hf_bigbird(n):
    from transformers import BigBirdConfig
    from transformers.models.big_bird.modeling_big_bird import (BigBirdBlockSparseAttention,
                                                                BigBirdModel)

    config = BigBirdConfig(hidden_size=D_MODEL, num_attention_heads=HEADS, block_size=128,
                           num_random_blocks=3, max_position_embeddings=n,
                           attention_type="block_sparse", attention_probs_dropout_prob=0.0)
    module = BigBirdBlockSparseAttention(config, seed=0).eval()
    blocked, band, rows, columns = BigBirdModel.create_masks_for_block_sparse_attn(
        torch.ones(1, n), config.block_size)
    return with_output(lambda x: module(x, band_mask=band, from_mask=rows, to_mask=columns,
                                        from_blocked_mask=blocked, to_blocked_mask=blocked)[0])


def hf_nystromformer(n):
    from transformers import NystromformerConfig
    from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention

    config = NystromformerConfig(hidden_size=D_MODEL, num_attention_heads=HEADS, num_landmarks=128,
                                 segment_means_seq_len=n, attention_probs_dropout_prob=0.0)
    module = NystromformerSelfAttention(config).eval()
    module.conv_kernel_size = None  # without the convolution
    return with_output(lambda x: module(x)[0])


def performer(n):
    del n
    from performer_pytorch import SelfAttention

    return SelfAttention(dim=D_MODEL, heads=HEADS, causal=False).eval()


def hf_reformer(n):
    from transformers import ReformerConfig
    from transformers.models.reformer.modeling_reformer import LSHSelfAttention

    config = ReformerConfig(hidden_size=D_MODEL, num_attention_heads=HEADS,
                            attention_head_size=HEAD_DIM, lsh_attn_chunk_length=64, num_hashes=1,
                            num_buckets=n // 64, is_decoder=False,
                            lsh_attention_probs_dropout_prob=0.0)
    module = LSHSelfAttention(config).eval()
    return with_output(lambda x: module(x).hidden_states)


PEERS = [
    ("FlexAttention compiled, window 64 (core alone)", flex_window, qkv),
    ("lucidrains local-attention, window 64 (core alone)", lucidrains_local, qkv),
    ("Hugging Face Longformer, 128, 16 global", hf_longformer, tokens),
    ("Hugging Face BigBird, blocks of 128", hf_bigbird, tokens),
    ("Hugging Face Nyströmformer, 128 landmarks", hf_nystromformer, tokens),
    ("performer-pytorch, 266 features", performer, tokens),
    ("Hugging Face Reformer LSH, 64", hf_reformer, tokens),
    ("four projections alone, of 512 x 512", four_projections, tokens),
    ("Hugging Face Qwen3-Next, chunked gated delta rule", hf_gated_delta, delta_inputs),
]

# Those that are not torch: functions of n and the threads that give both times.
OTHERS = [
    ("ONNX Runtime attention, dense (core alone)", lambda n, threads: onnx_attention(n, threads, 0)),
    ("ONNX Runtime attention, causal (core alone)", lambda n, threads: onnx_attention(n, threads, 1)),
    ("OpenVINO attention, dense (core alone)", lambda n, threads: openvino_attention(n, threads, False)),
    ("OpenVINO attention, causal (core alone)", lambda n, threads: openvino_attention(n, threads, True)),
    ("MLX gated delta rule", lambda n, threads: mlx_gated_delta(n)),
    ("ONNX Runtime LinearAttention, gated delta rule", onnx_gated_delta),
]

OWN = {
    "attzoo attention(), dense (core alone)": ("attention_bench", "f32/dense/", "own_ms"),
    "attzoo attention(), causal (core alone)": ("attention_bench", "f32/causal/", "own_ms"),
    "attzoo window(64, 64) (core alone)": ("attention_bench", "f32/window64/", "own_ms"),
    "attzoo LocalSelfAttention, 128": ("attzoo_bench", "local_128/", "least_ms"),
    "attzoo LongformerSelfAttention, 128, 16 global": ("attzoo_bench", "longformer_128_g16/",
                                                       "least_ms"),
    "attzoo BigBirdSelfAttention, blocks of 128": ("attzoo_bench", "big_bird_128/", "least_ms"),
    "attzoo NystromSelfAttention, 128 landmarks": ("attzoo_bench", "nystrom/", "least_ms"),
    "attzoo PerformerSelfAttention, 266 features": ("attzoo_bench", "performer/", "least_ms"),
    "attzoo LSHSelfAttention, 64": ("attzoo_bench", "lsh_64/", "least_ms"),
    "attzoo recurrence(), gated delta rule": ("recurrence_bench", "gated_delta/forward", "own_ms"),
}


def benchmark(folder, program, pattern, counter, threads):
    """{whether a benchmark is of a backward pass: its counter}, of those that fit the pattern."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        subprocess.run([os.path.join(folder, program), f"--benchmark_filter={pattern}",
                        f"--benchmark_out={out.name}", "--benchmark_out_format=json"],
                       check=True, stdout=subprocess.DEVNULL,
                       env=dict(os.environ, OMP_NUM_THREADS=str(threads)))
        runs = json.load(out)["benchmarks"]
    return {"backward" in run["name"]: run[counter] for run in runs}


def attzoo_bench_times(folder, name, n, threads):
    """A mechanism's forward, and forward + backward."""
    times = benchmark(folder, "attzoo_bench", f"^{name}/forward[^/]*/{n}/", "least_ms", threads)
    return [times[False], times[True]]


def own_rows(folder, n, threads):
    rows = []
    for name, (program, prefix, counter) in OWN.items():
        core = program == "attention_bench"
        shape = {"attention_bench": f".*/n:{n}/D:{HEAD_DIM}/threads:{threads}/", "attzoo_bench": f".*/{n}/",
                 "recurrence_bench": f".*/f32/.*/D:{HEAD_DIM}/n:{n}/threads:{threads}/"}
        pattern = f"^{prefix}{shape[program]}"
        times = benchmark(folder, program, pattern, counter, threads)
        if not times:
            continue
        # attention_bench times the backward pass alone
        both = times[True] + times[False] if core else times[True]
        rows.append((name, [times[False], both]))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attzoo", help="folder of attzoo's benchmarks")
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", default="peers.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    versions = {"torch": torch.__version__}
    for package in ("transformers", "local-attention", "performer-pytorch", "mlx", "onnxruntime",
                    "openvino"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pass  # its rows say so
    rows = []
    for n in args.lengths:
        # First, while no other library has threads that wait by spinning.
        own = own_rows(args.attzoo, n, args.threads) if args.attzoo else []
        for name, make, inputs in PEERS:
            try:
                times = both_ways(lambda: make(n), inputs(n))
            except Exception as error:
                times = ["no: " + str(error).splitlines()[0][:60], ""]
            rows.append([name, n, *times])
            print(*rows[-1], flush=True)
        for name, measure in OTHERS:
            try:
                times = measure(n, args.threads)
            except Exception as error:
                times = ["no: " + str(error).splitlines()[0][:60], ""]
            rows.append([name, n, *times])
            print(*rows[-1], flush=True)
        rows += [[name, n, *times] for name, times in own]
    with open(args.out, "w", encoding="utf-8") as out:
        json.dump({"versions": versions, "threads": args.threads, "rows": rows}, out)
    print(f"{versions}, {args.threads} threads, ms, least of 5: forward, forward + backward")
    for name, n, *times in rows:
        print(f"{name:52} {n:6} ", *(f"{t:10.1f}" if isinstance(t, float) else t for t in times))


if __name__ == "__main__":
    main()
