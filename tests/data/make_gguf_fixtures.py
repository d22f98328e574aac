"""Makes tests/data/models/gguf: GGUF files as PyPI's `gguf` writes and reads them.

    python3 -m venv venv && venv/bin/pip install torch transformers gguf
    venv/bin/python tests/data/make_gguf_fixtures.py tests/data/models

quantised.gguf has two rows of random blocks of each format, quantised.safetensors what `gguf` makes of them. llama.gguf and qwen2.gguf are
the models of ../llama-grouped and ../qwen2; llama3.gguf has rotary frequencies as Llama 3.1's files have them, its logits are in
llama3.json, from weights as they are in the file.
"""
import json
import os
import shutil
import sys
import tempfile

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from make_model_fixtures import VOCABULARY, save

NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "input_layernorm": "attn_norm",
         "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


def gguf_name(name):
    name, kind = name.rsplit(".", 1)
    if name in NAMES:
        return f"{NAMES[name]}.{kind}"
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest]}.{kind}"


def pieces(writer):  # SentencePiece
    tokens = [b"<unk>", b"<s>", b"</s>"] + ["▁".encode()] + [bytes([c]) for c in b"abcdefghijklmnopqrstuvwxyz"]
    tokens += ["▁t".encode(), b"he", "▁the".encode()]
    tokens += [f"<0x{i:02X}>".encode() for i in range(VOCABULARY - len(tokens))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0, 0.0, 0.0] + [-float(i) for i in range(VOCABULARY - 3)])
    writer.add_token_types([2, 3, 3] + [6 if t.startswith(b"<0x") else 1 for t in tokens[3:]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def pairs(writer, rule):  # byte-level pairs
    tokens = ["<|begin|>", "<|end|>", "Ġ"] + [chr(c) for c in range(ord("a"), ord("z") + 1)] + [str(i) for i in range(10)]
    merges = ["Ġ t", "h e", "Ġt he", "i n", "Ġ a", "e r"]
    tokens += [m.replace(" ", "") for m in merges]
    types = [3, 3] + [1] * (len(tokens) - 2)
    types += [5] * (VOCABULARY - len(tokens))
    tokens += [f"[PAD{i}]" for i in range(VOCABULARY - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)


def write(file, architecture, config, state, tokenizer, scaling=None):
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    tokenizer(writer)
    if scaling is not None:
        writer.add_tensor("rope_freqs.weight", scaling.astype(np.float32))
    for name, tensor in state.items():
        if name.endswith("q_proj.weight") and architecture == "llama" or name.endswith("k_proj.weight") and architecture == "llama":
            heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            rows, columns = tensor.shape  # a head's halves become neighbours
            tensor = tensor.reshape(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)
        if tensor.dtype == torch.bfloat16:
            data = tensor.contiguous().view(torch.uint8).numpy()
            writer.add_tensor(gguf_name(name), data, raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(gguf_name(name), tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def weights(folder):
    state = {}
    for name in sorted(os.listdir(folder)):
        if name.endswith(".safetensors"):
            state |= load_file(os.path.join(folder, name))
    return json.load(open(os.path.join(folder, "config.json"))), state


def quantised(folder):
    random = np.random.default_rng(1)
    writer = gguf.GGUFWriter(f"{folder}/quantised.gguf", "llama")
    expected = {}
    formats = gguf.GGMLQuantizationType
    halves = {formats.Q8_0: [0], formats.Q4_0: [0], formats.Q4_1: [0, 2], formats.Q5_0: [0], formats.Q5_1: [0, 2], formats.Q4_K: [0, 2],
              formats.Q5_K: [0, 2], formats.Q6_K: [208]}
    for kind in (formats.F32, formats.F16, formats.BF16, *halves):
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        count = 512 // elements
        if kind in halves:
            blocks = random.integers(0, 256, (count, size), dtype=np.uint8)
            for at in halves[kind]:
                scales = (random.standard_normal(count) * 10.0 ** random.integers(-4, 2, count)).astype(np.float16)
                blocks[:, at:at + 2] = scales.view(np.uint8).reshape(count, 2)
            data = blocks.reshape(2, -1)
            expected[kind.name] = torch.from_numpy(gguf.quants.dequantize(data, kind).copy())
        else:
            numbers = torch.from_numpy(random.standard_normal((2, 256)).astype(np.float32) * 1e-3)
            numbers[0, :4] = torch.tensor([0.0, 1e-7, -65504.0, 6e-8])
            stored = numbers.to({formats.F32: torch.float32, formats.F16: torch.float16, formats.BF16: torch.bfloat16}[kind])
            data, expected[kind.name] = stored.view(torch.uint8).numpy(), stored.float()
        writer.add_tensor(kind.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(expected, f"{folder}/quantised.safetensors")


def llama3(folder):
    config = LlamaConfig(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1,
                         num_key_value_heads=1, max_position_embeddings=131072, rms_norm_eps=1e-5, tie_word_embeddings=True,
                         rope_parameters=dict(rope_type="llama3", rope_theta=500000.0, factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                              original_max_position_embeddings=8192))
    model = LlamaForCausalLM(config)
    with tempfile.TemporaryDirectory() as temporary:
        made = os.path.join(temporary, "llama3")
        save(model, made, 8, torch.bfloat16)
        shutil.move(os.path.join(made, "expected.json"), f"{folder}/llama3.json")
        settings, state = weights(made)
    state = {name: t.float() if t.ndim == 1 else t for name, t in state.items()}
    plain = 500000.0 ** -(np.arange(0, 32, 2) / 32)
    scaled = model.model.rotary_emb.inv_freq.double().numpy()
    write(f"{folder}/llama3.gguf", "llama", settings, state, lambda w: pairs(w, "llama-bpe"), plain / scaled)


def main(out):
    folder = f"{out}/gguf"
    os.makedirs(folder, exist_ok=True)
    quantised(folder)
    write(f"{folder}/llama.gguf", "llama", *weights(f"{out}/llama-grouped"), pieces)
    write(f"{folder}/qwen2.gguf", "qwen2", *weights(f"{out}/qwen2"), lambda w: pairs(w, "qwen2"))
    llama3(folder)


if __name__ == "__main__":
    main(sys.argv[1])
