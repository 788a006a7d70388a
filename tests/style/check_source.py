#!/usr/bin/env python3
"""Three rules for src/: no function above 80 lines, no 12 equal lines in two places, no local name
that two files of a room share.

usage: check_source.py [ROOT]        exit 0: both hold; 1: prints every place where one does not

Functions are found by their braces: a block whose head ends in a parameter list (constructors with
initialiser lists, trailing return types and qualifiers included), outside any other function. A
lambda belongs to the function that it stands in. Equal lines are compared without indentation;
blank lines, comments, includes and lone braces do not count. Local are the names in anonymous
namespaces: files of a room that sees PyTorch are compiled several at a time (HEED_UNITY), so that two
functions of one signature or two types of one name would meet.
"""
import pathlib
import re
import sys

MOST_LINES = 80
EQUAL_LINES = 12
SUFFIXES = {".h", ".cc", ".c", ".cu", ".cuh"}

TOKEN = re.compile(
    r"""
    (?P<comment>//[^\n]*|/\*.*?\*/)
  | (?P<raw>R"(?P<tag>[^()\s]{0,16})\(.*?\)(?P=tag)")
  | (?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])+')
  | (?P<directive>^[ \t]*\#(?:[^\n\\]|\\.|\\\n)*)
    """,
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)


def blank(text):
    """`text` with comments, strings and directives turned into spaces; lines stay where they are."""

    def spaces(match):
        if match.group("string") and match.start() > 0 and text[match.start() - 1].isdigit():
            return match.group(0)  # a digit separator: 1'000
        return re.sub(r"[^\n]", " ", match.group(0))

    return TOKEN.sub(spaces, text)


NOT_FUNCTIONS = re.compile(r"\b(namespace|class|struct|enum|union|extern)\b")
# What may stand between a parameter list and the body.
TAIL = re.compile(
    r"\)\s*(const|noexcept(\s*\([^)]*\))?|override|final|mutable|&|&&|->\s*[\w:<>,\s*&]+|try)*\s*$"
)
INITIALISERS = re.compile(r"\)\s*(noexcept\s*)?:\s*[^:].*[)}]\s*$", re.DOTALL)


def is_function(head):
    if TAIL.search(head) or INITIALISERS.search(head):
        return not NOT_FUNCTIONS.match(head.strip()) and not re.search(r"=\s*$", head)
    return False


def functions(code):
    """(first line, last line) of every function, counted from 1."""
    depth, head_begin, found = 0, 0, []
    inside = None  # depth of the function's block, and where its head begins
    parentheses = 0
    for at, char in enumerate(code):
        if char in "([":
            parentheses += 1
        elif char in ")]":
            parentheses -= 1
        elif char == "{":
            if inside is None and parentheses == 0:
                head = code[head_begin:at]
                if is_function(head):
                    inside = (depth, head_begin + len(head) - len(head.lstrip()))
                elif not re.search(r"\)\s*(noexcept\s*)?:\s*[^:]", head):
                    head_begin = at + 1  # a namespace or a class
            depth += 1
        elif char == "}":
            depth -= 1
            if inside is not None and depth == inside[0]:
                lines = code.count("\n", 0, inside[1]) + 1, code.count("\n", 0, at) + 1
                found.append(lines)
                inside = None
            if inside is None and parentheses == 0 and not re.search(
                r"\)\s*:\s*[^:;{]*\{[^{}]*$", code[head_begin:at]
            ):
                head_begin = at + 1
        elif char == ";" and inside is None and parentheses == 0:
            head_begin = at + 1
    return found


def long_functions(files):
    for path, text in files:
        lines = text.split("\n")
        for first, last in functions(blank(text)):
            if last - first + 1 > MOST_LINES:
                yield f"{path}:{first}: a function of {last - first + 1} lines (at most {MOST_LINES}): {lines[first - 1].strip()[:70]}"


def countable(text):
    """(line number, line) of the lines that count, without indentation."""
    without_comments = TOKEN.sub(
        lambda m: re.sub(r"[^\n]", " ", m.group(0)) if m.group("comment") else m.group(0), text
    )
    for number, line in enumerate(without_comments.split("\n"), 1):
        line = line.strip()
        if line and not line.startswith("#include") and line.strip("{}();, "):
            yield number, line


def equal_places(files):
    seen, last = {}, None
    for path, text in files:
        lines = list(countable(text))
        for i in range(len(lines) - EQUAL_LINES + 1):
            window = "\n".join(line for _, line in lines[i : i + EQUAL_LINES])
            here = (path, lines[i][0], i)
            if window not in seen:
                seen[window] = here
                continue
            there = seen[window]
            # One report for a run: the windows after the first follow on both sides.
            follows = last and last[0] == (path, i - 1) and last[1] == (there[0], there[2] - 1)
            last = ((path, i), (there[0], there[2]))
            if not follows:
                yield f"{path}:{here[1]}: the {EQUAL_LINES} lines from here on stand at {there[0]}:{there[1]} too"


def local_names(code):
    """Types, constants and functions with their parameters' types, in anonymous namespaces."""
    for opening in re.finditer(r"namespace \{", code):
        depth, outside = 1, ""
        for char in code[opening.end() :]:
            depth += {"{": 1, "}": -1}.get(char, 0)
            if depth == 0:
                break
            if depth == 1 or (depth == 2 and char == "{"):
                outside += ";" if char == "}" else char  # what braces hold is left out
        for statement in re.split(r"[;{]", outside):
            statement = " ".join(statement.split())
            if type_name := re.match(r"(?:template ?<.*> ?)?(?:struct|class|enum class|enum|union) (\w+)", statement):
                yield type_name.group(1)
            elif constant := re.match(r"(?:inline |static )*constexpr [\w:<>, ]+ (k[A-Z]\w*)", statement):
                yield constant.group(1)
            elif function := re.search(r"(\w+) ?\((.*)\)(?: const| noexcept)*$", statement):
                if not statement.startswith(("using ", "HEED_", "HWY_")):
                    types = re.sub(r" ?\b\w+( = [^,]*)?(?=,|$)", "", function.group(2))
                    yield f"{function.group(1)}({types})"


def shared_names(files, rooms):
    seen = {}
    for path, text in files:
        room = path.parts[1]
        if room not in rooms or path.suffix != ".cc":
            continue
        for name in sorted(set(local_names(blank(text)))):
            there = seen.setdefault((room, name), path)
            if there != path:
                yield f"{path}: the local name {name} is in {there} too: give one of them another name"


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parents[2])
    names = sorted(p for p in (root / "src").rglob("*") if p.suffix in SUFFIXES)
    if not names:
        sys.exit(f"{root}/src holds no sources")
    files = [(p.relative_to(root), p.read_text()) for p in names]
    rooms = re.findall(r"heed_room\((\w+) TORCH", (root / "src/CMakeLists.txt").read_text())
    found = [*long_functions(files), *equal_places(files), *shared_names(files, rooms)]
    print(*found, sep="\n")
    print(f"{len(files)} files, {len(found)} findings")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
