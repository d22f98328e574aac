"""Makes tests/data/models: small random models of other libraries, with the logits that PyPI's `transformers` gives.

    python3 -m venv venv && venv/bin/pip install torch transformers
    venv/bin/python tests/data/make_model_fixtures.py tests/data/models

Every folder has config.json, the weights, and expected.json: token ids (B, T) and logits (B, T, V), computed in f64 from the weights as
they are in the file (but rotary angles and RMS norms, which `transformers` computes in f32 always). llama2c.bin is the grouped Llama again in the format of llama2.c, whose heads turn neighbouring numbers.
bert has ids, mask (1 where there is a token), types, hidden (B, T, C) and pooled (B, C) instead, bert-classes logits (B, classes).
"""
import copy
import json
import os
import shutil
import struct
import sys

import torch
from transformers import (BertConfig, BertForSequenceClassification, BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM,
                          MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM)

VOCABULARY, CONTEXT = 50, 32


def randomise(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if p.ndim == 1 and "norm" in name.lower() or ".ln_" in name and name.endswith("weight"):
            p.data = 1 + 0.2 * torch.randn(p.shape, generator=generator)
        else:
            p.data = 0.3 * torch.randn(p.shape, generator=generator)


def save(model, folder, seed, dtype=torch.float32, **options):
    randomise(model, seed)
    for p in model.parameters():
        p.data = p.data.to(dtype).float()
    shutil.rmtree(folder, ignore_errors=True)
    copy.deepcopy(model).to(dtype).save_pretrained(folder, **options)  # a copy, as that rounds the rotary frequencies too
    ids = torch.randint(0, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(seed + 100))
    with torch.no_grad():
        logits = model.double().eval()(ids).logits
    with open(os.path.join(folder, "expected.json"), "w") as f:
        json.dump({"ids": ids.tolist(), "logits": [[[round(x, 9) for x in t] for t in row] for row in logits.tolist()]}, f,
                  separators=(",", ":"))
    for name in ("generation_config.json",):
        if os.path.exists(os.path.join(folder, name)):
            os.remove(os.path.join(folder, name))
    return model


def rounded(tensor):
    return json.loads(json.dumps(tensor.tolist()), parse_float=lambda x: round(float(x), 9))


def save_bert(model, folder, seed):
    randomise(model, seed)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    generator = torch.Generator().manual_seed(seed + 100)
    lengths = torch.tensor([24, 17, 1])
    ids, types = torch.randint(5, VOCABULARY, (3, 24), generator=generator), torch.randint(0, 2, (3, 24), generator=generator)
    mask = (torch.arange(24) < lengths[:, None]).long()
    ids = ids * mask
    with torch.no_grad():
        out = model.double().eval()(ids, attention_mask=mask, token_type_ids=types)
    if "logits" in out:
        expected = {"logits": rounded(out.logits)}
    else:
        expected = {"hidden": rounded(out.last_hidden_state), "pooled": rounded(out.pooler_output)}
    with open(os.path.join(folder, "expected.json"), "w") as f:
        json.dump({"ids": ids.tolist(), "mask": mask.tolist(), "types": types.tolist()} | expected, f, separators=(",", ":"))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + list("abcdefghijklmnopqrstuvwxyz") + ["##" + c for c in "abcdefghijklmnopqrs"]
    assert len(words) == VOCABULARY
    with open(os.path.join(folder, "vocab.txt"), "w") as f:
        f.write("".join(w + "\n" for w in words))


def llama2c(model, file):
    c, state = model.config, {k: v.float() for k, v in model.state_dict().items()}
    width = c.hidden_size // c.num_attention_heads

    def neighbours(w, heads):  # a head's halves (i, i + D/2) become neighbours (2 i, 2 i + 1)
        return w.view(heads, 2, width // 2, -1).transpose(1, 2).reshape(w.shape)

    with open(file, "wb") as f:
        f.write(struct.pack("7i", c.hidden_size, c.intermediate_size, c.num_hidden_layers, c.num_attention_heads, c.num_key_value_heads,
                            -c.vocab_size, c.max_position_embeddings))

        def put(t):
            f.write(t.contiguous().numpy().astype("<f4").tobytes())

        put(state["model.embed_tokens.weight"])
        for name, heads in (("input_layernorm", 0), ("self_attn.q_proj", c.num_attention_heads), ("self_attn.k_proj", c.num_key_value_heads),
                            ("self_attn.v_proj", 0), ("self_attn.o_proj", 0), ("post_attention_layernorm", 0), ("mlp.gate_proj", 0),
                            ("mlp.down_proj", 0), ("mlp.up_proj", 0)):
            for i in range(c.num_hidden_layers):
                w = state[f"model.layers.{i}.{name}.weight"]
                put(neighbours(w, heads) if heads else w)
        put(state["model.norm.weight"])
        put(torch.zeros(c.max_position_embeddings * (width // 2) * 2))
        put(state["lm_head.weight"])


def main(out):
    os.makedirs(out, exist_ok=True)
    common = dict(vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
                  max_position_embeddings=CONTEXT, rms_norm_eps=1e-4)
    save(GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=4, n_positions=CONTEXT, layer_norm_epsilon=1e-4)),
         f"{out}/gpt2", 1)
    save(LlamaForCausalLM(LlamaConfig(**common, num_key_value_heads=4, tie_word_embeddings=True)), f"{out}/llama", 2, torch.float16)
    plain = LlamaForCausalLM(LlamaConfig(**(common | dict(rms_norm_eps=1e-5)), num_key_value_heads=2))
    llama2c(save(plain, f"{out}/llama-grouped", 3, max_shard_size="8KB"), f"{out}/llama2c.bin")
    save(LlamaForCausalLM(LlamaConfig(**common, num_key_value_heads=2, rope_parameters=dict(
        rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16))),
        f"{out}/llama3", 4, torch.bfloat16)
    save(LlamaForCausalLM(LlamaConfig(**common, num_key_value_heads=1, rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=2.0))),
         f"{out}/llama-linear", 5)
    save(MistralForCausalLM(MistralConfig(**common, num_key_value_heads=2, sliding_window=8)), f"{out}/mistral", 6)
    save(Qwen2ForCausalLM(Qwen2Config(**common, num_key_value_heads=2, tie_word_embeddings=True)), f"{out}/qwen2", 7)

    bert = BertConfig(vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
                      max_position_embeddings=CONTEXT, type_vocab_size=2, layer_norm_eps=1e-3, attn_implementation="eager")
    save_bert(BertModel(bert), f"{out}/bert", 8)
    bert.num_labels = 3
    save_bert(BertForSequenceClassification(bert), f"{out}/bert-classes", 9)


if __name__ == "__main__":
    main(sys.argv[1])
