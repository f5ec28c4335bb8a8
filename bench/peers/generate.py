#!/usr/bin/env python3
"""attzoo_generate beside transformers' own generate(): the same weights, prompt and threads.

    pip install -r bench/peers/requirements.txt
    cmake --build --preset default --target attzoo_generate
    python bench/peers/generate.py --attzoo build/examples/attzoo_generate

A model with random weights is saved as a checkpoint, and both continue a random prompt greedily,
in turns; the least times count. `--family all` goes through all architectures that attzoo_generate
reads, small ones, in float64, and says whether the tokens are the same.
"""
import argparse
import os
import re
import subprocess
import tempfile
import time

import torch
import transformers

SMALL = dict(vocab_size=211, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
             num_attention_heads=8, num_key_value_heads=2, max_position_embeddings=512)
YARN = dict(rope_type="yarn", rope_theta=150000.0, factor=8.0, beta_fast=32.0, beta_slow=1.0,
            original_max_position_embeddings=64, truncate=False)
LLAMA3 = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0,
              high_freq_factor=4.0, original_max_position_embeddings=64)
FAMILIES = {  # name: configuration of transformers, its options
    "llama": ("LlamaConfig", dict(SMALL, rope_parameters=LLAMA3, tie_word_embeddings=True)),
    "llama_biases": ("LlamaConfig", dict(SMALL, attention_bias=True, mlp_bias=True, head_dim=12)),
    "mistral": ("MistralConfig", dict(SMALL, sliding_window=9)),
    "qwen2": ("Qwen2Config", dict(SMALL, use_sliding_window=True, sliding_window=7,
                                  max_window_layers=1)),
    "qwen3": ("Qwen3Config", dict(SMALL, head_dim=16, attention_bias=True)),
    "gpt2": ("GPT2Config", dict(vocab_size=211, n_embd=64, n_layer=3, n_head=4, n_positions=512)),
    "gpt_oss": ("GptOssConfig", dict(SMALL, head_dim=16, num_local_experts=6, sliding_window=8,
                                     num_experts_per_tok=3, rope_parameters=YARN)),
}
LARGE = dict(vocab_size=1024, hidden_size=512, intermediate_size=1376, num_hidden_layers=8,
             num_attention_heads=8, num_key_value_heads=2, max_position_embeddings=4096)


def make(config_name, options, folder, dtype):
    """A model with random weights, biases and norms included, in a checkpoint of several files."""
    torch.manual_seed(0)
    config = getattr(transformers, config_name)(**options, bos_token_id=None, eos_token_id=None,
                                                pad_token_id=None)
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype).eval()
    if hasattr(config, "num_local_experts") and dtype == torch.float64:
        model.config._experts_implementation = "eager"  # the grouped product has no float64
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.add_(torch.randn_like(p) * (0.1 if p.dim() == 1 else 0.02))
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    model.save_pretrained(folder, max_shard_size=size // 2)
    return model


class Times(transformers.generation.streamers.BaseStreamer):
    """When each token came; the first call is the prompt's."""

    def __init__(self):
        self.at = []

    def put(self, value):
        self.at.append(time.perf_counter())

    def end(self):
        pass


def theirs(model, prompt, tokens):
    times = Times()
    start = time.perf_counter()
    with torch.inference_mode():
        out = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)).long(),
                             max_new_tokens=tokens, do_sample=False, streamer=times)
    at = times.at[1:]
    return out[0, len(prompt):].tolist(), at[0] - start, (at[-1] - at[0]) / max(tokens - 1, 1)


def ours(program, folder, prompt, tokens, dtype, threads):
    done = subprocess.run([program, folder, "--ids", ",".join(map(str, prompt)), "--tokens",
                           str(tokens), "--dtype", dtype, "--threads", str(threads), "--warm-up"],
                          capture_output=True, text=True, check=False,
                          env=dict(os.environ, LD_LIBRARY_PATH=""))
    if done.returncode:
        raise SystemExit(done.stderr)
    first, rest = (float(re.search(what + r": \d+ tokens in ([\d.]+) s", done.stderr).group(1))
                   for what in ("prompt", "generation"))
    return list(map(int, done.stdout.split())), first, rest / max(tokens - 1, 1)


def compare(program, name, config, options, args, dtype):
    with tempfile.TemporaryDirectory() as folder:
        model = make(config, options, folder, getattr(torch, dtype))
        prompt = torch.randint(options["vocab_size"], (args.prompt,)).tolist()
        theirs(model, prompt, 4)  # what is done once
        best = {}
        for _ in range(args.rounds):
            for who, call in (("transformers", lambda: theirs(model, prompt, args.tokens)),
                              ("attzoo", lambda: ours(program, folder, prompt, args.tokens, dtype,
                                                      args.threads))):
                ids, first, step = call()
                old = best.get(who, (ids, first, step))
                best[who] = (ids, min(old[1], first), min(old[2], step))
    same = best["attzoo"][0] == best["transformers"][0]
    print(f"{name}, {dtype}, prompt of {args.prompt}, {args.tokens} tokens, {args.threads} threads: "
          f"{'the same tokens' if same else 'OTHER TOKENS'}")
    for who, (_, first, step) in best.items():
        print(f"  {who:13} prompt {first * 1e3:8.2f} ms, generation {step * 1e3:7.3f} ms a token")
    a, b = best["attzoo"], best["transformers"]
    print(f"  attzoo is {b[1] / a[1]:.2f} times as fast with the prompt, {b[2] / a[2]:.2f} times in "
          "generation", flush=True)
    return same


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--attzoo", required=True, help="the program attzoo_generate")
    parser.add_argument("--family", default="large", help="large, all, or " + ", ".join(FAMILIES))
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if args.family == "large":
        same = [compare(args.attzoo, "llama", "LlamaConfig", LARGE, args, "float32")]
    else:
        names = FAMILIES if args.family == "all" else [args.family]
        same = [compare(args.attzoo, name, *FAMILIES[name], args, "float64") for name in names]
    raise SystemExit(0 if all(same) else 1)


if __name__ == "__main__":
    main()
