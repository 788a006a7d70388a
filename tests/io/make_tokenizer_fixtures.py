"""Makes fixtures/tokenizers: one small tokenizer.json of each kind, a SentencePiece model, and
expected.json with the ids and texts that Hugging Face `tokenizers` (SentencePiece for the .model)
gives for varied strings. tokenizer_test.cc compares with them. Needs tokenizers, sentencepiece."""
import io
import json
import pathlib
import random
import re
import struct
import sys

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers import processors, trainers

ROOT = pathlib.Path(__file__).parent
HERE = ROOT / "fixtures" / "tokenizers"
sys.path.insert(0, str(ROOT.parent / "interop"))
from varied_strings import varied_strings  # noqa: E402

GPT2 = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
LLAMA3 = (r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"""
          r""" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
DEEPSEEK = [r"[\r\n]", r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-Ֆ]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"\s+$", r"[一-龥ࠀ-一가-퟿]+"]


def texts():
    random.seed(5)
    out = varied_strings(600, 11)
    book = ("It was the best of times, it was the worst of times, it was the age of wisdom, it was "
            "the age of foolishness, it was the epoch of belief, it was the season of Light. "
            "Call me Ishmael. Some years ago - never mind how long precisely - having little or no "
            "money in my purse, and nothing particular to interest me on shore, I thought I would "
            "sail about a little and see the watery part of the world. ")
    return out + [book] * 5


def byte_level(pre, size=600, **model):
    t = Tokenizer(models.BPE(**model))
    t.pre_tokenizer = pre
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(texts(), trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<|endoftext|>", "<|im_start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return t


def split_then_bytes(pattern):
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def sentencepiece_style(**model):
    """Llama 2's: no pre-tokenizer, blanks become U+2581, unknown characters become bytes."""
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True, **model))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.train_from_iterator([s[:200] for s in texts()], trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)],
        limit_alphabet=80, show_progress=False))
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(),
                                   decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    # Only these three are special, as in the published files.
    config = json.loads(t.to_str())
    config["added_tokens"] = [a for a in config["added_tokens"] if a["id"] < 3]
    return Tokenizer.from_str(json.dumps(config))


def make():
    made = {}
    pre = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                   pre_tokenizers.ByteLevel(add_prefix_space=False)])
    t = byte_level(pre)
    t.add_tokens([AddedToken("lstrip me", lstrip=True), AddedToken("rstrip me", rstrip=True),
                  AddedToken("word", single_word=True), AddedToken("<both>", lstrip=True, rstrip=True, special=True)])
    t.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|endoftext|>", special_tokens=[("<|im_start|>", 1), ("<|endoftext|>", 0)])
    made["byte_digits"] = t
    made["byte_prefix_space"] = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True))
    t = byte_level(split_then_bytes(LLAMA3), ignore_merges=True)
    # Some words stand in the vocabulary without merges that lead to them.
    config = json.loads(t.to_str())
    vocab = config["model"]["vocab"]
    for word in ["Ġfoolishness", "Ġparticularly", "ĊĊĊ", "HELLO"]:
        vocab.setdefault(word, len(vocab))
    made["byte_llama3"] = Tokenizer.from_str(json.dumps(config))
    t = byte_level(split_then_bytes(QWEN2))
    t.normalizer = normalizers.NFC()
    made["byte_qwen2_nfc"] = t
    made["byte_deepseek"] = byte_level(pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(p), "isolated") for p in DEEPSEEK] +
        [pre_tokenizers.Digits(individual_digits=True),
         pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]))
    made["byte_falcon"] = byte_level(pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation("contiguous"), pre_tokenizers.ByteLevel(add_prefix_space=False),
         pre_tokenizers.Digits(individual_digits=False),
         pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated")]))
    made["bpe_llama2"] = sentencepiece_style()
    t = sentencepiece_style()
    t.normalizer = None
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                   decoders.Strip(" ", 1, 0)])
    made["bpe_metaspace_first"] = t
    t = Tokenizer(models.BPE(unk_token="[UNK]", fuse_unk=True))
    t.pre_tokenizer = pre_tokenizers.Whitespace()
    t.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(),
                                         normalizers.Strip(), normalizers.Replace(Regex(r"\s{2,}"), " ")])
    t.train_from_iterator(texts(), trainers.BpeTrainer(vocab_size=400, special_tokens=["[UNK]"],
                                                       limit_alphabet=60, show_progress=False))
    made["bpe_whitespace_unk"] = t
    t = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    t.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    t.decoder = decoders.BPEDecoder()
    t.train_from_iterator(texts(), trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<unk>"], limit_alphabet=70, end_of_word_suffix="</w>",
        show_progress=False))
    made["bpe_word_suffix"] = t
    for name, fallback in (("unigram", False), ("unigram_bytes", True)):
        t = Tokenizer(models.Unigram())
        t.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(),
                                             normalizers.Replace(Regex(" {2,}"), " ")])
        t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        t.decoder = decoders.Metaspace()
        latin = [s for s in texts() if all(c in "\t\n" or " " <= c < "\u0180" for c in s)]
        t.train_from_iterator(latin, trainers.UnigramTrainer(
            vocab_size=500, unk_token="<unk>", special_tokens=["<unk>", "<s>", "</s>"], show_progress=False))
        config = json.loads(t.to_str())
        if fallback:
            config["model"]["vocab"] += [[f"<0x{b:02X}>", -20.0] for b in range(256)]
            config["model"]["byte_fallback"] = True
            config["decoder"] = {"type": "Sequence", "decoders": [
                {"type": "ByteFallback"}, config["decoder"]]}
        made[name] = Tokenizer.from_str(json.dumps(config))
    t = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=50))
    t.normalizer = normalizers.BertNormalizer()
    t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    t.decoder = decoders.WordPiece()
    t.train_from_iterator(texts(), trainers.WordPieceTrainer(
        vocab_size=600, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        limit_alphabet=120, show_progress=False))
    t.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made["wordpiece_bert"] = t
    t = Tokenizer(models.BPE(unk_token="?"))
    t.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(),
                                         normalizers.Prepend(">"), normalizers.NFKD()])
    t.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "merged_with_previous"), pre_tokenizers.Split(Regex("[aeiou]+"), "merged_with_next"),
         pre_tokenizers.Split(Regex(r"\d"), "contiguous"), pre_tokenizers.Split(Regex(r"[^,;]+"), "removed", invert=True),
         pre_tokenizers.Punctuation("removed")])
    t.train_from_iterator(texts(), trainers.BpeTrainer(vocab_size=400, special_tokens=["?"],
                                                       limit_alphabet=80, show_progress=False))
    made["bpe_splits"] = t
    return made


def sentencepiece_model(kind):
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([s.replace("\n", " ").replace("\0", "")[:500] for s in texts()]), model_writer=out, vocab_size=1000,
        model_type=kind, byte_fallback=True, character_coverage=0.98, minloglevel=2,
        user_defined_symbols=["<sep>"], num_threads=1, hard_vocab_limit=False)
    return out.getvalue()


def protobuf_fields(data):
    """(field number, value) of a protobuf message; fixed32 values as floats."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            value |= (data[at] & 0x7F) << shift
            shift += 7
            at += 1
            if data[at - 1] < 0x80:
                return value

    while at < len(data):
        key = varint()
        if key & 7 == 0:
            value = varint()
        elif key & 7 == 2:
            size = varint()
            value = data[at:at + size]
            at += size
        else:
            value = struct.unpack("<f", data[at:at + 4])[0]
            at += 4
        yield key >> 3, value


def from_charsmap(model):
    """A tokenizer.json whose normalizer is the compiled character map of a SentencePiece model."""
    pieces, charsmap = [], b""
    for field, value in protobuf_fields(model):  # sentencepiece_model.proto
        if field == 1:
            piece = dict(protobuf_fields(value))
            pieces.append((piece[1].decode(), piece[2]))
        elif field == 3:
            charsmap = dict(protobuf_fields(value))[2]
    t = Tokenizer(models.Unigram(pieces, 0, True))
    t.normalizer = normalizers.Sequence([
        normalizers.Precompiled(charsmap),
        normalizers.Strip(False, True), normalizers.Replace(Regex(" {2,}"), "▁")])
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    t.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return t


def random_ids(size, rng):
    return [[rng.randrange(size) for _ in range(rng.randrange(1, 12))] for _ in range(40)]


def main():
    HERE.mkdir(parents=True, exist_ok=True)
    strings = varied_strings(300, 23, ["<|im_start|>", "<|endoftext|>", "<s>", "</s>", "[MASK]", "<both>",
                                       "lstrip me", "rstrip me", "word", "<sep>"])
    strings += ["", " ", "  lstrip me  rstrip me  x", "wordword word sword word.", "a <both> b<both><both> "]
    rng = random.Random(9)
    expected = {"strings": strings, "tokenizers": {}}
    spm = sentencepiece_model("unigram")
    made = make()
    made["unigram_charsmap"] = from_charsmap(spm)
    for name, t in made.items():
        (HERE / f"{name}.json").write_text(
            json.dumps(json.loads(t.to_str()), ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
        ids = [t.encode(s, add_special_tokens=False).ids for s in strings]
        random_list = random_ids(t.get_vocab_size(), rng)
        # Where bytes fall back, `tokenizers` writes one U+FFFD a byte; the rule here is one for each
        # longest broken part, so only whole texts are compared.
        if "ByteFallback" in t.to_str() and '"type":"ByteFallback"' in t.to_str().replace(" ", ""):
            random_list = []
        decoded = ids + random_list
        expected["tokenizers"][f"{name}.json"] = {
            "ids": ids, "decode": random_list,
            "texts": [t.decode(x, skip_special_tokens=False) for x in decoded]}
    for kind in ("unigram", "bpe"):
        model = spm if kind == "unigram" else sentencepiece_model(kind)
        (HERE / f"sentencepiece_{kind}.model").write_bytes(model)
        sp = sentencepiece.SentencePieceProcessor(model_proto=model)
        # Long runs of one character have many segmentations of equal score: which one wins depends
        # on the release of the library.
        plain = [s if not re.search(r"<s>|</s>|\0|(..?)\1{3}", s, re.S) else "" for s in strings]
        ids = [sp.encode(s) for s in plain]
        expected["tokenizers"][f"sentencepiece_{kind}.model"] = {
            "strings": plain, "ids": ids, "decode": [], "texts": [sp.decode(x) for x in ids]}
    (HERE / "expected.json").write_text(json.dumps(expected, ensure_ascii=True) + "\n")
    for path in sorted(HERE.iterdir()):
        print(path.name, path.stat().st_size)


if __name__ == "__main__":
    main()
