"""Writes the adapters and cases of this folder: python tests/golden-peft/write.py (needs torch, transformers, peft).

Each folder has what PEFT saves of a tiny model with random LoRA, its config.json, and case.safetensors: the base's
weights, tokens, and the logits of the adapted model in float64."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

here = Path(__file__).parent
tokens = torch.arange(18).reshape(2, 9) * 7 % 32


def write(name, model, lora):
    folder = here / name
    model.eval()
    base = {f"base.{k}": v.clone() for k, v in model.state_dict().items() if k not in model.all_tied_weights_keys}
    model.config.save_pretrained(folder)
    adapted = get_peft_model(model, lora).eval()
    for key, parameter in adapted.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(folder)
    (folder / "README.md").unlink()
    logits = adapted.double()(tokens).logits.detach()
    save_file({**base, "tokens": tokens, "logits": logits}, folder / "case.safetensors")
    for file in folder.iterdir():
        file.chmod(0o644)


torch.manual_seed(0)
llama = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, max_position_embeddings=64, bos_token_id=None, eos_token_id=None)
write("llama", LlamaForCausalLM(llama),
      LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj", "down_proj"], lora_dropout=0.05))
gpt2 = GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=4, bos_token_id=None, eos_token_id=None)
write("gpt2", GPT2LMHeadModel(gpt2),
      LoraConfig(r=2, lora_alpha=5, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True))
