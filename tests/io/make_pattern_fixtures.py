"""Makes fixtures/patterns.json: regular expressions of every construct that tokenizer files use, strings,
and where `tokenizers` (Oniguruma) finds matches, as byte offsets. regex_test.cc compares with them.
Needs tokenizers alone.

    python make_pattern_fixtures.py          writes the file
    random_patterns(count, seed), matches(pattern, strings)   also serve tests/interop/patterns_test.py"""
import json
import pathlib
import random

from tokenizers import Regex, pre_tokenizers

HERE = pathlib.Path(__file__).parent / "fixtures"

ATOMS = ["a", "b", "c", "1", " ", r"\n", "é", "中", r"\w", r"\W", r"\d", r"\D", r"\s", r"\S", r"\h", r"\H", r"\v", r"\R",
         r"\X", ".", "[abc]", "[^a]", "[a-c&&[^b]]", "[[:alpha:]]", "[^[:space:]]", r"[\p{L}&&[^\p{Han}]]", "[a[bc]]",
         "[^a[^b]]", "(a|b)", "(?:ab)", "(?>a+)", "(?i:A)", "(?m:.)", "(?=a)", "(?!b)", "(?<=a)", "(?<!a)", r"\b", r"\B",
         "^", "$", r"\A", r"\z", r"\Z", r"\G", r"(?<n>a)", r"\N", r"\O", r"\x61", r"\x{4e2d}", r"\u00e9", r"\p{Lu}",
         r"\p{^L}", r"\t", r"\Q", r"\i", "]", "}", "{", "{,", "[]a]", "[a-]", "[-a]", r"[a\-c]", "[0-9-a]", r"\141",
         r"[\d-z]", r"\e", r"[^\W]", r"[\h]", "[x&&]", r"[\s\S]", "(?i)b", "(?x: a b )", r"\K", r"(?W:\w)", "(b)?", r"\pL",
         r"\E", r"\L", r"[[:punct:]]", r"\p{Punct}", r"[^\p{Lu}&&\w]", r"(?#note)", r"\xE4\xB8\xAD", r"\cI", r"\o{141}"]
QUANTIFIERS = ["", "", "", "", "*", "+", "?", "*?", "+?", "??", "*+", "++", "?+", "{2}", "{1,2}", "{2,}", "{,2}", "{1,2}?",
               "{2}?", "{1,2}+", "{2}+", "{2,1}", "{,2}?", "{2,}+", "{2,1}?", "**", "+*", "{2}{2}", "{,}", "{a}", "{1",
               "{0}"]
STRINGS = ["", "a", "ab", "abc aab\nccba 11", "aaaa bbbb\r\n\x0bcab", "éa中b中中 1²\u0085a\u2028b", "ABcab ]}{[-a&&",
           "QiQ {,2} a{a} {1 b", "\n\na\n", "a\nb\n", "\x1bAa\tz0-9 _word-word's e\u0301x", "pLELapL $+<|>^`~!?"]
# One character each: the sets of Oniguruma, over the characters of SAMPLE.
SETS = [r"\w", r"\W", r"\d", r"\s", r"\S", r"\h", r"\v", ".", "(?m).", r"\N", r"\O", "[[:alnum:]]", "[[:alpha:]]",
        "[[:ascii:]]", "[[:blank:]]", "[[:cntrl:]]", "[[:digit:]]", "[[:graph:]]", "[[:lower:]]", "[[:print:]]",
        "[[:punct:]]", "[[:space:]]", "[[:upper:]]", "[[:xdigit:]]", "[[:word:]]", "[[:^alpha:]]", r"\p{Han}",
        r"\p{^Han}", r"\P{Greek}", r"\p{Punct}", r"\p{Punctuation}", r"\p{L}", r"\p{Uppercase_Letter}",
        r"\p{uppercase letter}", r"\p{LC}", r"\p{Any}", r"\p{Assigned}", r"\p{Hiragana}", r"\p{Katakana}",
        r"\p{Latin}", r"\p{Common}", r"\p{Alphabetic}", r"\p{White_Space}", r"\p{Lowercase}", r"\p{M}", r"\p{Graph}",
        r"\p{Print}", r"\p{Word}", r"\p{Alnum}", r"\p{ASCII}", r"[\p{L}&&[^\p{Han}]]", r"[^\p{L}&&\p{Lu}]", r"[\W\d]",
        r"[^\W\d]", "(?P)[[:punct:]]", "(?P)[[:graph:]]", r"(?W)\w", r"(?D)\d", r"(?S)\s", "[a-w&&[^c-g]z]",
        "(?i)[a-z]", "(?i)[^a-z]", "(?i)k", r"\p{Zs}", r"\p{Sc}", r"\p{Arabic}", r"\p{Thai}", r"\p{Cyrillic}"]
SAMPLE = "".join(map(chr, [*range(0x250), *range(0x370, 0x378), *range(0x5D0, 0x5DA), *range(0x660, 0x670), 0x30A, 0x301,
                           *range(0x0E01, 0x0E10), *range(0x2000, 0x2070), *range(0x20A0, 0x20AC), *range(0x2150, 0x2190),
                           *range(0x24B0, 0x24D0), *range(0x3000, 0x3050), *range(0x30A0, 0x3100), 0x4E00, 0x9FA5, 0xAC00,
                           0xD7A3, 0xE000, 0xFB01, 0xFF21, 0xFF11, 0x1D400, 0x1F130, 0x1F600, 0x20000, 0x10FFFF]))


def matches(pattern, strings):
    """Lists of [start, end] in bytes; None where the pattern is refused."""
    try:
        split = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
        return [[[len(s[:a].encode()), len(s[:b].encode())] for _, (a, b) in split.pre_tokenize_str(s)]
                for s in strings]
    except Exception:
        return None


def random_patterns(count, seed):
    r = random.Random(seed)
    out = []
    for _ in range(count):
        pattern = "".join(r.choice(ATOMS) + r.choice(QUANTIFIERS) for _ in range(r.randrange(1, 4)))
        if r.random() < 0.2:
            pattern += "|" + r.choice(ATOMS) + r.choice(QUANTIFIERS)
        out.append(pattern)
    return out


def main():
    patterns = [a + q for a in ATOMS for q in ["", "+", "{1,2}+"]] + random_patterns(600, 11)
    found = [(p, matches(p, STRINGS)) for p in dict.fromkeys(patterns)]
    # What Oniguruma refuses may be read here: only its matches are compared.
    file = {"strings": STRINGS, "patterns": [{"pattern": p, "matches": m} for p, m in found if m is not None],
            "sample": SAMPLE, "sets": [{"pattern": p, "members": [c for c, m in zip(SAMPLE, matches(p, list(SAMPLE)))
                                                                  if m]} for p in SETS]}
    for entry in file["sets"]:
        entry["members"] = "".join(entry["members"])
    (HERE / "patterns.json").write_text(json.dumps(file, ensure_ascii=True, separators=(",", ":")) + "\n")
    print(len(file["patterns"]), "patterns,", len(file["sets"]), "sets")


if __name__ == "__main__":
    main()
