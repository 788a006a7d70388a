"""Renders templates/*.jinja with Python's Jinja2 and writes templates/expected.json, which
template_test.cc compares with. The settings are those of transformers' apply_chat_template
(utils/chat_template_utils.py). Needs jinja2 alone."""
import datetime
import json
import pathlib

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = pathlib.Path(__file__).parent / "fixtures" / "templates"
NOW = datetime.datetime(2026, 3, 4, 5, 6, 7)


class Generation(Extension):
    """{% generation %} marks what the model said; it prints its body."""
    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                          sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                        extensions=[Generation, loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = NOW.strftime
    return env


TOOL = {"type": "function", "function": {
    "name": "get_weather", "description": "The \"weather\" of a place, e.g. Zürich",
    "parameters": {"type": "object", "properties": {
        "place": {"type": "string"}, "days": {"type": "integer", "default": 1.5}},
        "required": ["place"]}}}
CALL = [{"type": "function", "id": "abcdef123",
         "function": {"name": "get_weather", "arguments": {"place": "Zürich", "days": 2, "x": None}}}]
CONVERSATIONS = [
    [{"role": "user", "content": "Hello!"}],
    [{"role": "system", "content": "Be brief.\n"}, {"role": "user", "content": "  Who are you?  "}],
    [{"role": "user", "content": "1\n2\n\n3"}, {"role": "assistant", "content": "<think>\nadd\n</think>\n\n6 "},
     {"role": "user", "content": "Thanks \U0001F600 'quote' \"double\" \\ <b>&amp;"}],
    [{"role": "system", "content": "/no_think You are a pirate."}, {"role": "user", "content": "Hi"},
     {"role": "assistant", "content": "Arr"}, {"role": "user", "content": "\tTab"},
     {"role": "assistant", "content": "Arr again"}],
    [{"role": "user", "content": ""}],
    [{"role": "assistant", "content": "I start"}, {"role": "user", "content": "No"}],
    [{"role": "user", "content": [{"type": "text", "text": "Look: "}, {"type": "image"},
                                  {"type": "text", "text": " nice?"}]}],
    [{"role": "user", "content": "Weather?"},
     {"role": "assistant", "content": None, "tool_calls": CALL},
     {"role": "tool", "content": "{\"temp\": 21.0}", "tool_call_id": "abcdef123"},
     {"role": "assistant", "content": "Warm."}],
]
VARIANTS = [
    {"add_generation_prompt": True},
    {"add_generation_prompt": False},
    {"add_generation_prompt": True, "tools": [TOOL]},
    {"add_generation_prompt": True, "enable_thinking": False, "tools_in_user_message": False,
     "tools": [TOOL], "builtin_tools": ["brave_search", "code_interpreter"]},
]
# Single expressions and statements, rendered with x, s, l, d, n, f and none of them messages.
VARIABLES = {"x": 7, "s": "Hello, wörld 😀", "l": [3, 1, 2], "d": {"b": 1, "a": {"k": [1, None, True]}},
             "n": None, "f": 1.5, "e": [], "items": [{"r": "u", "v": 2}, {"r": "a", "v": 1}, {"v": 3}]}
SNIPPETS = r"""
{{ x // 2 }} {{ x / 2 }} {{ x % 4 }} {{ -x // 2 }} {{ -x % 4 }} {{ x ** 2 }} {{ 2 ** -1 }} {{ 7.0 }} {{ 1e20 }} {{ 1.5e-7 }} {{ 100000000000000000.0 }} {{ 0.1 + 0.2 }}
{{ s[1:4] }}|{{ s[::-1] }}|{{ s[-2:] }}|{{ s[20:] }}|{{ s[0] }}|{{ l[::-1] }}|{{ l[1:] }}|{{ l[-1] }}|{{ l[:-1] }}|{{ l[5] }}
{{ l }} {{ d }} {{ n }} {{ true }} {{ f }} {{ (1, 2) }} {{ (1,) }} {{ ['it\'s', "a\"b", 'tab\t', '\\', 'é', '\u200b'] }}
{{ d | tojson }} {{ d | tojson(indent=2) }} {{ e | tojson(indent=2) }} {{ {} | tojson }} {{ s | tojson }} {{ "é\u2028</" | tojson }} {{ [1.0, 1e100, -0.0] | tojson }}
{{ 'a' in s }} {{ 'Hello' in s }} {{ 3 in l }} {{ 3 not in l }} {{ 'a' in d }} {{ 'z' in undefined_thing }}
{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 1 == 1.0 }} {{ true == 1 }} {{ 'a' < 'b' }} {{ [1, 2] < [1, 3] }} {{ not x == 7 }} {{ n is none and x is defined }}
{{ x is number }} {{ s is string }} {{ d is mapping }} {{ l is sequence }} {{ s is iterable }} {{ x is iterable }} {{ true is number }} {{ true is integer }} {{ f is float }} {{ q is defined }} {{ q is undefined }} {{ x is odd }} {{ x is divisibleby 7 }} {{ x is divisibleby(2) }} {{ d is iterable }} {{ 'x' is in ['x'] }} {{ true is true }} {{ 1 is true }} {{ none is false }} {{ x is eq 7 }} {{ x is sameas 7 }} {{ x is not string }}
{{ s | length }} {{ l | length }} {{ d | length }} {{ q | length }} {{ s | upper }} {{ s | lower }} {{ 'hello wORLD-foo' | title }} {{ 'hello wORLD' | capitalize }} {{ '  x ' | trim }}|{{ 'xxaxx' | trim('x') }}
{{ l | join(', ') }} {{ l | join }} {{ items | join('-', attribute='v') }} {{ l | first }} {{ l | last }} {{ e | first }} {{ l | sort }} {{ l | sort(reverse=true) }} {{ ['b', 'A', 'a'] | sort }} {{ items | sort(attribute='v') | map(attribute='v') | list }} {{ l | reverse | list }} {{ 'abc' | reverse }} {{ l | sum }} {{ l | min }} {{ l | max }} {{ [1, 1, 2, 'a', 'A'] | unique | list }}
{{ q | default('dq') }} {{ n | default('dn') }} {{ n | default('dn', true) }} {{ '' | d('de', boolean=true) }} {{ 'x' | default('y') }}
{{ items | selectattr('r', 'equalto', 'u') | list }} {{ items | selectattr('r', 'defined') | map(attribute='v') | list }} {{ items | rejectattr('r') | list }} {{ items | map(attribute='r', default='none') | list }} {{ l | select('odd') | list }} {{ l | reject('gt', 1) | list }} {{ ['a ', ' b'] | map('trim') | list }} {{ ['ab', 'cb'] | map('replace', 'b', 'x') | join('+') }}
{{ s.split(', ') }} {{ ' a  b c '.split() }} {{ 'a,b,c'.split(',', 1) }} {{ 'a,b,c'.rsplit(',', 1) }} {{ 'a  b c'.split(none, 1) }} {{ ' a b  c '.rsplit(none, 1) }} {{ 'a\nb\r\nc\n'.splitlines() }} {{ ''.split(',') }} {{ ''.split() }}
{{ s.strip('Ho') }} {{ '  a '.strip() }}| {{ '  a '.lstrip() }}|{{ ' a  '.rstrip() }}| {{ s.startswith('He') }} {{ s.endswith(('x', '😀')) }} {{ s.find('w') }} {{ s.find('zz') }} {{ s.replace('l', 'L', 1) }} {{ 'aaa'.count('a') }} {{ ','.join(['a', 'b']) }} {{ s.upper().lower() }} {{ 'ab'.removeprefix('a') }} {{ '12'.isdigit() }} {{ 'abc'.title() }}
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %} {% for k in d %}{{ k }}{% endfor %} {{ d.keys() | list }} {{ d.values() | list }} {{ d.get('a') }} {{ d.get('z') }} {{ d.get('z', 0) }} {{ d.z }} {{ d['a']['k'][1] }} {{ d.a.k.2 }} {% for k, v in d | items %}{{ k }}{% endfor %} {{ d | dictsort }}
{% for i in range(3) %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.cycle('a', 'b') }} {% endfor %}
{% for i in range(10) if i % 2 %}{% if i == 7 %}{% break %}{% elif i == 3 %}{% continue %}{% endif %}{{ i }}{% else %}none{% endfor %}{% for i in [] %}x{% else %}empty{% endfor %}{% for i in range(5, 0, -2) %}{{ i }}{% endfor %}
{% set a = 1 %}{% for i in l %}{% set a = i %}{% endfor %}{{ a }}{% set ns = namespace(a=1) %}{% for i in l %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}{% if true %}{% set a = 5 %}{% endif %}{{ a }}{% set p, q = 1, 2 %}{{ p + q }}{% set b %}x{{ a }}y{% endset %}{{ b }}
{% macro m(a, b='B') %}[{{ a }}{{ b }}{{ c }}]{% endmacro %}{{ m(1) }}{{ m(1, 2) }}{{ m(b=3, a=4) }}{{ m() }}{% set c = 'C' %}{{ m(5) }}
{{ 'yes' if x > 5 else 'no' }} {{ 'yes' if x < 5 }}|{{ ('a' if false else 'b') ~ 1 ~ none }} {{ 'x' * 3 }} {{ [1] * 2 }} {{ [1] + [2] }} {{ 'a' 'b' }}
{{ "%}" }} {{ '{{' }} {% raw %}{{ raw }} {% x %}{% endraw %} {# comment #}|{#- c -#} | {{- ' t ' -}} | {{ 1_000 }}
   {% if true %}
   indented {{ x }}
   {%- endif %}
   {%+ if true %}kept{% endif +%}
  {{ x }}   
    {# c #}
 end
{{ '5' | int }} {{ 'x' | int }} {{ 'x' | int(3) }} {{ '1.9' | int }} {{ 2.7 | int }} {{ '1.5' | float }} {{ 7 | string + 'a' }} {{ -3 | abs }} {{ 2.567 | round(2) }} {{ 'a\nb\n\nc' | indent(2) }}|{{ 'a\nb' | indent(2, true) }}|{{ '<a&"\'>' | e }} {{ 'x' | safe }} {{ 'abc' | list }} {{ l | string }} {{ none | string }}
{{ n or 'x' }} {{ x and 'y' }} {{ not n }} {{ (n or x) + 1 }} {{ q or 'undef' }} {{ 1 if q else 2 }} {{ dict(a=1) }} {{ dict(a=1).a }} {{ s is string and s | length > 3 }} {{ l | length == 3 and not e }}
{{ q.z }}
{{ q + 'x' }}
{{ raise_exception('no') }}
{{ 'a' + 1 }}
{{ 1 / 0 }}
{{ l.append(4) }}
{{ n.x }}|{{ n['x'] }}|{{ x.y }}|{{ s.nothing }}|{{ l.nothing }}
{{ 'a' ~ 1 + 2 }}
{{ 'x' in n }}
{{ n | length }}
{{ m() }}
{% for i in 5 %}{% endfor %}
{{ 1 < 'a' }}
{% for a, b in [(1, 2), [3, 4]] %}{{ a }}{{ b }}{% endfor %}{% for a, b in [(1, 2, 3)] %}{% endfor %}
{{ q | tojson }}
{{ strftime_now('%Y-%m-%d %H:%M') }}
""".strip("\n")


def snippets():
    # A line that starts in column 0 begins a new snippet; indented lines belong to the one before.
    out = []
    for line in SNIPPETS.split("\n"):
        if line.startswith(" ") and out:
            out[-1] += "\n" + line
        else:
            out.append(line)
    return out


def render(source, **variables):
    try:
        return {"text": environment().from_string(source).render(**variables)}
    except Exception as error:  # what Python refuses, Heed must refuse too
        return {"error": type(error).__name__}


def main():
    cases = []
    for path in sorted(HERE.glob("*.jinja")):
        source = path.read_text(encoding="utf-8")
        for c, conversation in enumerate(CONVERSATIONS):
            for v, variant in enumerate(VARIANTS):
                arguments = {"tools": None, "documents": None, "bos_token": "<s>",
                             "eos_token": "</s>", **variant}
                cases.append({"template": path.name, "conversation": c, "variant": v,
                              **render(source, messages=conversation, **arguments)})
    small = [{"source": s, **render(s, messages=[], **VARIABLES)} for s in snippets()]
    expected = {"conversations": CONVERSATIONS, "variants": VARIANTS, "variables": VARIABLES,
                "cases": cases, "snippets": small}
    (HERE / "expected.json").write_text(json.dumps(expected, indent=0, ensure_ascii=False) + "\n",
                                        encoding="utf-8")
    print(len(cases), "cases,", sum("error" in c for c in cases), "refused;", len(small), "snippets,",
          sum("error" in c for c in small), "refused")


if __name__ == "__main__":
    main()
