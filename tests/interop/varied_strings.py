"""Varied strings for comparing tokenizers: words, code, many scripts, emoji, white space, digits,
special tokens, long runs. Code points that this Python does not know yet are left out: what class
they have depends on everybody's release of Unicode."""
import random
import unicodedata

WORDS = ("the of and to in a is that it was for on are with as I his they be at one have this from or "
         "had by hot word but what some we can out other were all there when up use your how said an "
         "each she don't I'll we've it's you're HELLO World cafe naïve Zürich don’t l'été x=1 foo_bar "
         "camelCase __init__ 3.14159 1,000,000 2026-11-22 http://example.com/a?b=c&d=e user@mail.org "
         "C++ C# #include <vector> std::string& def f(x): return x**2 {} [] () <|im_start|>user").split(" ")
SCRIPTS = [(0x20, 0x7E), (0xA1, 0x17F), (0x370, 0x3FF), (0x400, 0x4FF), (0x590, 0x5FF), (0x600, 0x6FF),
           (0x900, 0x97F), (0xE00, 0xE7F), (0x1100, 0x11FF), (0x1E00, 0x1EFF), (0x2000, 0x206F),
           (0x2070, 0x209F), (0x2100, 0x218F), (0x2190, 0x22FF), (0x2460, 0x24FF), (0x2500, 0x25FF),
           (0x2600, 0x27BF), (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xF900, 0xFAFF),
           (0xFE00, 0xFE0F), (0xFF00, 0xFFEF), (0x1D400, 0x1D7FF), (0x1F300, 0x1F6FF), (0x1F900, 0x1F9FF),
           (0x20000, 0x2A6DF), (0, 0x1F), (0x300, 0x36F), (0x660, 0x669), (0x966, 0x96F), (0xFDD0, 0xFDEF)]
SPACES = [" ", "  ", "    ", "\t", "\n", "\n\n", "\r\n", " \n", "\u00a0", "\u2003", "\u3000", "\u2028",
          "\x0b", "\x85", "\u200b", "\ufeff", "\u180e"]
MARKS = ["😀", "👩‍👩‍👧‍👦", "🇩🇪", "👍🏽", "❤️", "🏳️‍🌈", "1️⃣", "e\u0301", "가", "\u1100\u1161\u11a8", "ﬁ", "Å", "İ", "ẞ", "ſ",
         "K", "’s", "'S", "'RE", "´"]
CODE = ["for (int i = 0; i < n; ++i) {\n\treturn a[i];\n}", "if x:\n    pass\nelse:\n        y = 1\n",
        "SELECT * FROM t WHERE id=42;", '<html>\n  <body class="x">&nbsp;</body>\n</html>',
        "\\begin{equation} x^2 \\end{equation}", "0xDEADBEEF 1e-9 0b1010", "a" * 50, "=" * 70, "-" * 33,
        "....", "!!!???"]
NUMBERS = ["٣", "½", "Ⅻ", "²", "①", "१२", ",", ".", " "]
RUNS = ["a", " ", "\n", "é", "中", "😀", "ab", "0", ".", " \n", "\t", "!", "x "]


def known(text):
    return "".join(c for c in text if unicodedata.category(c) != "Cn")


def varied_strings(count, seed, specials=()):
    r = random.Random(seed)

    def any_character():
        return chr(r.choice([r.randrange(0x20, 0x7F), r.randrange(0xD800), r.randrange(0xE000, 0x110000),
                             r.randrange(0x20000)
                             ])) if r.random() < 0.9 else r.choice(SPACES)

    def one():
        kind = r.randrange(9)
        if kind == 0:
            parts = [r.choice(WORDS) + r.choice([" ", "", ", ", ". ", "\n"]) for _ in range(r.randrange(1, 30))]
        elif kind == 1:
            low, high = r.choice(SCRIPTS)
            parts = [chr(r.randint(low, high)) for _ in range(r.randrange(1, 30))]
        elif kind == 2:
            parts = [r.choice(r.choice([WORDS, SPACES, MARKS, CODE, [str(r.randrange(10 ** r.randrange(1, 12)))]]))
                     for _ in range(r.randrange(1, 14))]
        elif kind == 3:
            parts = [r.choice(SPACES) * r.randrange(1, 9) + r.choice(WORDS + [""]) for _ in range(r.randrange(1, 12))]
        elif kind == 4:
            parts = [c for c in (any_character() for _ in range(r.randrange(1, 20))) if not "\ud800" <= c <= "\udfff"]
        elif kind == 5:
            parts = [str(r.randrange(10 ** 9)) if r.random() < .5 else r.choice(NUMBERS) for _ in range(r.randrange(1, 9))]
        elif kind == 6:
            parts = [r.choice(list(specials) + WORDS) + r.choice(["", "", " ", "\n", "  "]) for _ in range(r.randrange(1, 10))]
        elif kind == 7:
            parts = [r.choice(MARKS + SPACES + WORDS) for _ in range(r.randrange(1, 10))]
        else:
            parts = [r.choice(RUNS) * r.randrange(1, 200)]
        return known("".join(parts))

    return [one() for _ in range(count)]
