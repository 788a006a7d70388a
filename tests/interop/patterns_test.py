"""Random regular expressions: `heed tokenize` must cut as Hugging Face `tokenizers` (Oniguruma) does. The pieces are
the words of a WordPiece vocabulary, so that every other cut shows as the unknown token."""
import json
import os
import pathlib
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "io"))
from make_pattern_fixtures import STRINGS, random_patterns  # noqa: E402
from tokenizers import Regex, pre_tokenizers  # noqa: E402

BATCH = 8  # patterns a tokenizer: each cuts what the ones before it left


def pieces(patterns, text):
    rules = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(p), "isolated") for p in patterns])
    return [piece for piece, _ in rules.pre_tokenize_str(text)]


@pytest.mark.parametrize("seed", range(6))
def test_random_patterns_cut_as_in_tokenizers(seed, tmp_path):
    patterns = []
    for pattern in random_patterns(400, 1000 + seed):
        try:
            for text in STRINGS:
                pieces([pattern], text)
            patterns.append(pattern)
        except Exception:  # refused there
            continue
        if len(patterns) == BATCH:
            break
    wanted = [pieces(patterns, text) for text in STRINGS]
    words = sorted({piece for cut in wanted for piece in cut})
    vocab = {"[UNK]": 0, **{word: i + 1 for i, word in enumerate(words)}}
    rules = [{"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False} for p in patterns]
    (tmp_path / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "added_tokens": [], "normalizer": None, "decoder": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": rules},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 1000, "vocab": vocab}}))
    source, target = tmp_path / "in.json", tmp_path / "out.json"
    source.write_text(json.dumps(STRINGS))
    subprocess.run([os.environ["HEED"], "tokenize", tmp_path, "--in", source, "--out", target], check=True)
    assert json.loads(target.read_text()) == [[vocab[p] for p in cut] for cut in wanted], patterns
