"""Makes tests/data/models/adapter-*: random adapters of PyPI's `peft` for the models of make_model_fixtures.py, with the logits that they give.

    python3 -m venv venv && venv/bin/pip install torch transformers peft
    venv/bin/python tests/data/make_adapter_fixtures.py tests/data/models

Every folder has adapter_config.json, adapter_model.safetensors and expected.json: ids (B, T) and logits (B, T, V) of the base model with the
adapter merged, computed in f64 from the weights as they are in the files (but rotary angles and RMS norms, which are in f32 always).
"""
import json
import os
import shutil
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM


def save(base, folder, seed, **options):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), LoraConfig(task_type="CAUSAL_LM", **options))
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data = 0.3 * torch.randn(p.shape, generator=generator)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, save_embedding_layers=False)  # those of the classifier are the base model's
    os.remove(os.path.join(folder, "README.md"))
    ids = torch.randint(0, 50, (2, 24), generator=generator)
    with torch.no_grad():
        logits = model.double().eval().merge_and_unload()(ids).logits
    with open(os.path.join(folder, "expected.json"), "w") as f:
        json.dump({"ids": ids.tolist(), "logits": [[[round(x, 9) for x in t] for t in row] for row in logits.tolist()]}, f,
                  separators=(",", ":"))


def main(models):
    save(f"{models}/gpt2", f"{models}/adapter-gpt2", 1, r=3, lora_alpha=5, use_rslora=True, fan_in_fan_out=True,
         target_modules=["c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"])
    save(f"{models}/llama-grouped", f"{models}/adapter-llama", 2, r=2, lora_alpha=3, rank_pattern={"k_proj": 4}, lora_dropout=0.1,
         target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"])


if __name__ == "__main__":
    main(sys.argv[1])
