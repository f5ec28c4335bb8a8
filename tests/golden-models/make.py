"""Makes the files of this folder: `python make.py [NAME ...]` (transformers 5.24.0, torch 2.15.0).

Tiny models of random weights, by the source of Hugging Face's transformers. Weights and inputs are
float32 numbers; everything else is computed in float64, where the source says float32, too.
"""

import json
import sys
from pathlib import Path

import numpy
import torch

torch.float32 = torch.float = torch.float64  # before the source reads them
torch.Tensor.float = torch.Tensor.double
torch.set_default_dtype(torch.float64)

import transformers  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402

folder = Path(__file__).parent


def single(t):
    """The same numbers as a float32 tensor."""
    return torch.from_numpy(t.detach().numpy().astype(numpy.float32)) if t.is_floating_point() else t


def randomise(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=generator) * 0.3
            is_norm = p.dim() == 1 and name.endswith("weight")
            p.copy_(single(1 + noise if is_norm else noise).double())
    return model.eval()


def save(path, tensors, **metadata):
    path.parent.mkdir(exist_ok=True)
    metadata = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    save_file({k: v.detach().contiguous().numpy() for k, v in tensors.items()}, path, metadata)


# ---- one layer of a model that has one ----------------------------------------------------------

E, H, N = 16, 4, 13
common = dict(vocab_size=32, hidden_size=E, num_hidden_layers=1, num_attention_heads=H)
llama = dict(common, num_key_value_heads=2, intermediate_size=24, max_position_embeddings=64,
             tie_word_embeddings=False, pad_token_id=None)


def rope(theta=10000.0, **more):
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **more}}


t = transformers
kinds = [("local", "sliding_attention"), ("global", "full_attention")]
layers = {  # name: model class, config, the layers' place, the attention's in a layer
    "llama2": (t.LlamaModel, t.LlamaConfig(**dict(llama, num_key_value_heads=H), **rope(),
                                           rms_norm_eps=1e-5), "layers",
               "self_attn"),
    "llama3": (t.LlamaModel, t.LlamaConfig(**llama, **rope(
        500000.0, rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=16), rms_norm_eps=1e-5), "layers", "self_attn"),
    "mistral": (t.MistralModel, t.MistralConfig(**llama, **rope(), sliding_window=5,
                                                rms_norm_eps=1e-5), "layers", "self_attn"),
    "mixtral": (t.MixtralModel, t.MixtralConfig(**llama, **rope(1e6), num_local_experts=2),
                "layers", "self_attn"),
    "qwen2": (t.Qwen2Model, t.Qwen2Config(**llama, **rope(1e6)), "layers", "self_attn"),
    "qwen3": (t.Qwen3Model, t.Qwen3Config(**llama, **rope(1e6), head_dim=6), "layers", "self_attn"),
    **{f"gemma2_{kind}": (t.Gemma2Model, t.Gemma2Config(
        **llama, **rope(), head_dim=6, query_pre_attn_scalar=9, sliding_window=5,
        layer_types=[layer_type]), "layers", "self_attn") for kind, layer_type in kinds},
    **{f"gemma3_{kind}": (t.Gemma3TextModel, t.Gemma3TextConfig(
        **llama, head_dim=6, query_pre_attn_scalar=9, sliding_window=5, layer_types=[layer_type],
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}}),
        "layers", "self_attn") for kind, layer_type in kinds},
    "phi2": (t.PhiModel, t.PhiConfig(**dict(llama, num_key_value_heads=H),
                                     **rope(partial_rotary_factor=0.5)), "layers", "self_attn"),
    "phi3": (t.Phi3Model, t.Phi3Config(**dict(llama, num_key_value_heads=H), **rope(), sliding_window=5),
             "layers", "self_attn"),
    **{f"gpt_oss_{kind}": (t.GptOssModel, t.GptOssConfig(
        **llama, head_dim=6, sliding_window=5, layer_types=[layer_type], num_local_experts=2,
        num_experts_per_tok=1, **rope(150000.0, rope_type="yarn", factor=32.0, beta_fast=32.0,
                                      beta_slow=1.0, truncate=False,
                                      original_max_position_embeddings=16)),
        "layers", "self_attn") for kind, layer_type in kinds},
    "qwen3_next": (t.Qwen3NextModel, t.Qwen3NextConfig(
        **llama, **rope(1e7, partial_rotary_factor=0.25), head_dim=8, layer_types=["full_attention"],
        num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8,
        shared_expert_intermediate_size=8), "layers", "self_attn"),
    "command_r": (t.CohereModel, t.CohereConfig(**llama, **rope(8e6)), "layers", "self_attn"),
    "starcoder2": (t.Starcoder2Model, t.Starcoder2Config(**llama, **rope(1e6), sliding_window=5),
                   "layers", "self_attn"),
    "gpt2": (t.GPT2Model, t.GPT2Config(vocab_size=32, n_embd=E, n_layer=1, n_head=H, n_positions=64,
                                       n_inner=24), "h", "attn"),
    "gptj": (t.GPTJModel, t.GPTJConfig(vocab_size=32, n_embd=E, n_layer=1, n_head=H, n_positions=64,
                                       n_inner=24, rotary_dim=2), "h", "attn"),
    "gpt_neox": (t.GPTNeoXModel, t.GPTNeoXConfig(
        **dict(common, num_attention_heads=2), intermediate_size=24, max_position_embeddings=64,
        **rope(partial_rotary_factor=0.25)), "layers", "attention"),
    "falcon": (t.FalconModel, t.FalconConfig(**common, ffn_hidden_size=24, **rope(), multi_query=True,
                                             parallel_attn=True, bias=False,
                                             new_decoder_architecture=False), "h", "self_attention"),
    "mpt": (t.MptModel, t.MptConfig(vocab_size=32, d_model=E, n_heads=H, n_layers=1, expansion_ratio=2,
                                    max_seq_len=64), "blocks", "attn"),
    "bloom": (t.BloomModel, t.BloomConfig(vocab_size=32, hidden_size=E, n_layer=1, n_head=H), "h",
              "self_attention"),
    "bert": (t.BertModel, t.BertConfig(**common, intermediate_size=24), "encoder.layer",
             "attention.self"),
    "longformer": (t.LongformerModel, t.LongformerConfig(
        **common, intermediate_size=24, attention_window=[4], layer_norm_eps=1e-5), "encoder.layer",
        "attention.self"),
    "vit": (t.ViTModel, t.ViTConfig(**{k: v for k, v in common.items() if k != "vocab_size"},
                                    intermediate_size=24, image_size=6, patch_size=2), None, None),
    "clip_image": (t.CLIPVisionModel, t.CLIPVisionConfig(
        **{k: v for k, v in common.items() if k != "vocab_size"}, intermediate_size=24, image_size=6,
        patch_size=2), None, None),
    "clip_text": (t.CLIPTextModel, t.CLIPTextConfig(**common, intermediate_size=24,
                                               max_position_embeddings=64), None, None),
}


def find_attention(model, name):
    """Names of the layer and of its attention."""
    _, _, place, attention = layers[name]
    names = [n for n, _ in model.named_modules()]
    if place is None:
        layer = next(n for n in names if n.endswith("layers.0") or n.endswith("layer.0"))
        inside = [n[len(layer) + 1:] for n in names if n.startswith(layer + ".")]
        attention = "self_attn" if "self_attn" in inside else "attention"
    else:
        layer = place + ".0"
    return layer, attention


def make_layer(name, seed):
    kind, config, _, _ = layers[name]
    config._attn_implementation = config._experts_implementation = "eager"
    model = randomise(kind(config), seed)
    layer, attention = find_attention(model, name)
    module = model.get_submodule(layer)
    seen = {}

    def hook(what):
        def keep(_, args, kwargs, out):
            seen["in." + what] = args[0] if args else kwargs["hidden_states"]
            seen["out." + what] = out[0] if isinstance(out, tuple) else out
        return keep

    module.register_forward_hook(hook("layer"), with_kwargs=True)
    module.get_submodule(attention).register_forward_hook(hook("attn"), with_kwargs=True)
    generator = torch.Generator().manual_seed(seed + 1)
    if name in ("vit", "clip_image"):
        inputs = {"pixel_values": torch.randn([2, 3, 6, 6], generator=generator)}
    else:
        inputs = {"input_ids": torch.randint(3, 32, [2, N], generator=generator)}
        if name in ("bert", "longformer"):
            inputs["attention_mask"] = (torch.arange(N) < torch.tensor([[N], [N - 3]])).long()
    if name == "longformer":
        inputs["global_attention_mask"] = torch.zeros([2, N]).long()
        inputs["global_attention_mask"][:, 0] = inputs["global_attention_mask"][0, 7] = 1
    with torch.no_grad():
        model(**inputs)
    tensors = {"param." + k: single(v) for k, v in module.state_dict().items()}
    tensors |= seen
    if "attention_mask" in inputs:
        tensors["in.real"] = inputs["attention_mask"].bool()
    if name == "longformer":
        tensors["in.global"] = inputs["global_attention_mask"].bool()
    save(folder / f"{name}.safetensors", tensors, source=f"transformers {t.__version__} {kind.__name__}")


# ---- whole encoder-decoders, as save_pretrained writes them --------------------------------------

def greedy(model, first, length, **inputs):
    """Tokens [B, length] and the logits of which they are the likeliest, each from a pass over all."""
    tokens, logits = first, []
    for _ in range(length):
        logits.append(model(**inputs, decoder_input_ids=tokens).logits[:, -1])
        best = logits[-1].topk(2).values
        assert (best[:, 0] - best[:, 1]).min() > 2e-3, "a near tie: take another seed"
        tokens = torch.cat([tokens, logits[-1].argmax(-1, keepdim=True)], 1)
    return tokens[:, 1:], torch.stack(logits, 1)


def save_checkpoint(path, model):
    path.mkdir(exist_ok=True)
    model.config.dtype = None
    model.config.to_json_file(path / "config.json")
    state = {k: single(v) for k, v in model.state_dict().items()}
    tied = set(model.all_tied_weights_keys or {})
    save(path / "model.safetensors", {k: v for k, v in state.items() if k not in tied}, format="pt")


def make_bart():
    config = t.BartConfig(
        vocab_size=50, max_position_embeddings=24, d_model=16, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=24)
    config._attn_implementation = config._experts_implementation = "eager"
    model = randomise(t.BartForConditionalGeneration(config), 55)
    generator = torch.Generator().manual_seed(56)
    read = torch.randint(4, 50, [3, 9], generator=generator)
    real = torch.arange(9) < torch.tensor([[9], [6], [1]])
    read = read.where(real, torch.tensor(config.pad_token_id))
    written = torch.randint(4, 50, [3, 7], generator=generator)
    inputs = dict(input_ids=read, attention_mask=real.long())
    first = torch.full([3, 1], config.decoder_start_token_id)
    with torch.no_grad():
        out = model(**inputs, decoder_input_ids=written)
        tokens, logits = greedy(model, first, 10, **inputs)
    save_checkpoint(folder / "bart", model)
    save(folder / "bart/golden.safetensors",
         {"in.read": read, "in.real": real, "in.written": written, "out.logits": out.logits,
          "out.encoder": out.encoder_last_hidden_state, "out.tokens": tokens, "out.greedy": logits},
         source=f"transformers {t.__version__} BartForConditionalGeneration")


def make_whisper():
    config = t.WhisperConfig(
        vocab_size=50, num_mel_bins=6, d_model=16, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=24,
        max_source_positions=12, max_target_positions=24, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=3, suppress_tokens=None, begin_suppress_tokens=None)
    config._attn_implementation = config._experts_implementation = "eager"
    model = t.WhisperForConditionalGeneration(config)
    positions = model.model.encoder.embed_positions.weight.detach().clone()
    model = randomise(model, 49)
    with torch.no_grad():  # which are sinusoids, and stored
        model.model.encoder.embed_positions.weight.copy_(single(positions).double())
    generator = torch.Generator().manual_seed(50)
    heard = torch.randn([2, 6, 24], generator=generator)
    written = torch.randint(4, 50, [2, 7], generator=generator)
    with torch.no_grad():
        out = model(input_features=heard, decoder_input_ids=written)
        tokens, logits = greedy(model, torch.full([2, 1], 3), 10, input_features=heard)
    save_checkpoint(folder / "whisper", model)
    save(folder / "whisper/golden.safetensors",
         {"in.heard": heard, "in.written": written, "out.logits": out.logits,
          "out.encoder": out.encoder_last_hidden_state, "out.tokens": tokens, "out.greedy": logits},
         source=f"transformers {t.__version__} WhisperForConditionalGeneration")


if __name__ == "__main__":
    for i, name in enumerate([*layers, "bart", "whisper"]):
        if len(sys.argv) > 1 and name not in sys.argv[1:]:
            continue
        {"bart": make_bart, "whisper": make_whisper}.get(name, lambda: make_layer(name, 10 * i))()
