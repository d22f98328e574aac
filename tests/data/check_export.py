"""Has PyPI's `transformers` open what hedgehog exports, and compares logits and token ids. Not run with the tests.

    python3 -m venv venv && venv/bin/pip install torch transformers
    venv/bin/python tests/data/check_export.py build/bin/hedgehog tests/data/models

Exports every fixture of the folder (with a tokenizer of 50 characters), loads the export with AutoModelForCausalLM and AutoTokenizer, and
fails unless logits are those that expected.json has to 1e-5 of the largest. So do two small models that hedgehog trains itself, compared in
loss with hedgehog's eval. A model of linear attention must be refused by AutoConfig.
"""
import json
import math
import os
import subprocess
import sys
import tempfile

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer


def run(program, *arguments):
    return subprocess.run([program, *arguments], check=True, capture_output=True, text=True, errors="replace").stdout


def opened(folder):
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not report[kind], (folder, kind, report[kind])
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def check_fixture(program, fixture, work, dtype, tolerance):
    source, out = os.path.join(work, "source"), os.path.join(work, "out-" + dtype)
    os.makedirs(source, exist_ok=True)
    for name in os.listdir(fixture):
        link = os.path.join(source, name)
        if not os.path.exists(link):
            os.symlink(os.path.join(os.path.abspath(fixture), name), link)
    with open(os.path.join(source, "tokenizer.json"), "w") as f:
        json.dump({"hedgehog": "tokenizer", "version": 1, "type": "char", "bytes": list(range(65, 115))}, f)
    run(program, "export", "--checkpoint=" + source, "--out=" + out, "--dtype=" + dtype)
    model, tokenizer = opened(out)
    with open(os.path.join(fixture, "expected.json")) as f:
        expected = json.load(f)
    logits = torch.tensor(expected["logits"])
    with torch.no_grad():
        found = model.float()(torch.tensor(expected["ids"])).logits
    error = ((found - logits).abs().max() / logits.abs().max()).item()
    text = "HEDGEHOG ate an apple"
    ids = [ord(c) - 65 for c in text if 65 <= ord(c) < 115]
    assert tokenizer(text)["input_ids"] == ids, (fixture, tokenizer(text)["input_ids"], ids)
    print(f"{type(model).__name__:20} {os.path.basename(fixture):16} {dtype:5} error {error:.1e}")
    assert error <= tolerance, (fixture, error)


def check_trained(program, work, options):
    text, out = os.path.join(work, "text.txt"), os.path.join(work, "out")
    with open(text, "w") as f:
        f.write("".join(f"the hedgehog number {i * i} walks home. " for i in range(300)))
    run(program, "train", "--data=" + text, "--steps=60", "--warmup=2", "--report=false", "--quiet", "--evaluate_every=0",
        "--out=" + os.path.join(work, "run"), *options)
    run(program, "export", "--checkpoint=" + os.path.join(work, "run"), "--out=" + out)
    if not any(o == "--attention=softmax" for o in options):
        try:
            AutoConfig.from_pretrained(out)
        except (KeyError, ValueError) as e:
            return print("linear attention is refused:", str(e).split("\n")[0][:80])
        raise AssertionError("a model of linear attention was opened as softmax")
    with open(os.path.join(work, "short.txt"), "w") as f:
        f.write("the hedgehog number 7 walks home.")
    loss = json.loads(run(program, "eval", "--json", "--data=" + os.path.join(work, "short.txt"), "--checkpoint=" + os.path.join(work, "run")))["loss"]
    model, tokenizer = opened(out)
    # eval closes a document with the token that ends it, where there is one
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids = torch.tensor([tokenizer("the hedgehog number 7 walks home.")["input_ids"] + end])
    with torch.no_grad():
        found = model(ids, labels=ids).loss.item()
    print(f"{type(model).__name__:20} trained here: loss {found:.7f}, ours {loss:.7f}")
    assert math.isclose(found, loss, rel_tol=1e-5), (options, found, loss)


def main(program, fixtures):
    for name in sorted(os.listdir(fixtures)):
        fixture = os.path.join(fixtures, name)
        if os.path.exists(os.path.join(fixture, "config.json")) and os.path.exists(os.path.join(fixture, "expected.json")):
            with tempfile.TemporaryDirectory() as work:
                check_fixture(program, fixture, work, "f32", 1e-5)
                # three of them hold F32, which is rounded: 2^-9 and 2^-12 of each weight
                check_fixture(program, fixture, work, "bf16", 0.1)
                check_fixture(program, fixture, work, "f16", 0.02)
    small = ["--layers=2", "--heads=2", "--width=32", "--context=64", "--batch=4"]
    llama = ["--norm=rms", "--gated_mlp", "--activation=silu", "--key_heads=1"]
    for options in (["--attention=softmax", "--positions=learned", "--bias"], ["--attention=softmax", "--positions=learned"],
                    ["--attention=softmax", *llama], ["--attention=softmax", *llama, "--window=8", "--tokenizer=char"],
                    ["--attention=softmax", *llama, "--tokenizer=bpe", "--vocabulary=300"], ["--attention=hedgehog", *llama]):
        with tempfile.TemporaryDirectory() as work:
            check_trained(program, work, small + options)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
