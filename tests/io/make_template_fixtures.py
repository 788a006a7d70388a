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
{{ n | selectattr('a') | list }} {{ n | rejectattr('a', 'equalto', 1) | list }} {{ n | select | list }} {{ n | reject('odd') | list }} {{ n | map(attribute='a') | list }} {{ n | map('upper') | list }} {{ false | select | list }} {{ 0 | map('upper') | list }} {{ '' | selectattr('x') | list }} {{ q | map(attribute='x') | list }}
{{ n | join }}
{{ n | list }}
{{ n | sort }}
{{ n | first }}
{{ n | unique | list }}
{{ n | sum }}
{{ 5 | select | list }}
{% set t = {0: 'zero', 1: 'one', 2.5: 'x', none: 'n', (1, 2): 'tuple', 'k': 'v'} %}{{ t[0] }} {{ t[1.0] }} {{ t[true] }} {{ t[2.5] }} {{ t[none] }} {{ t[(1, 2)] }} {{ t.k }} {{ t }} {{ 1 in t }} {{ 2 in t }} {{ (1, 2) in t }} {{ t.get(0) }} {{ t.get(7, 'd') }} {{ t | length }} {% for k, v in t.items() %}{{ k }}:{{ v }};{% endfor %}
{% set t = {0: 0, 512: 128, 16384: -1} %}{% for k, v in t | dictsort %}{{ k }}={{ v }} {% endfor %}{% for k in t %}{{ k + 1 }} {% endfor %}{{ t | tojson }} {{ {1: {2.5: none, none: true, false: []}} | tojson }} {{ t.keys() | max }} {{ t | list }} {{ {3: 'c', 1: 'a'} | tojson(sort_keys=true) }}
{{ {[1]: 2} }}
{{ {(1, [2]): 2} }}
{{ [1] in {1: 2} }}
{{ {1: 2, 'a': 3} | dictsort }}
{{ {(1, 2): 3} | tojson }}
{{ {'b': 1, 'A': 2, 'c': 0} | dictsort }} {{ {'b': 1, 'A': 2} | dictsort(true) }} {{ {'b': 1, 'A': 2, 'c': 0} | dictsort(by='value') }} {{ {'b': 1, 'A': 2} | dictsort(reverse=true) }}
{{ 5e-324 }} {{ 2.2250738585072014e-308 }} {{ 1e-5 }} {{ 0.0001 }} {{ 123456789012345680.0 }} {{ 1e16 }} {{ 9999999999999998.0 }} {{ 1e22 }} {{ 1.7976931348623157e308 }} {{ -0.0 }} {{ 0.1 }} {{ 1e308 * 10 }} {{ -1e308 * 10 }} {{ [1e-7, 5e-324, 3.0] | tojson }} {{ 1e400 }} {{ 3.14159265358979 }} {{ 100.0 }} {{ 1e2 }} {{ 4.35 }} {{ 2.675 | round(2) }} {{ 0.5 | round }} {{ 1.5 | round }} {{ 2.5 | round }} {{ 42 | round }} {{ 42.55 | round(1, 'floor') }} {{ 1234 | round(-2) }} {{ 0x1F }} {{ 0b101 }} {{ 0o17 }} {{ 2 ** 0.5 }} {{ 7 // 2.0 }} {{ -7.5 % 2 }}
{{ '<b>' | safe + s[:1] + '<i>' }} {{ '<i>' + '<b>' | safe }} {{ ('<b>' | safe) ~ '<i>' }} {{ '<i>' | e }} {{ '<i>' | e | e }} {{ '<i>' | e + '<' }} {{ '<i>' | forceescape | forceescape }} {{ ('<b>' | safe) * 2 + '<' }} {{ ('<a> b' | safe).split() }} {{ ('<b>' | safe).upper() + '&' }} {{ ('<b>' | safe) | upper + '&' }} {{ ('<%s>' | safe) % '<x>' }} {{ ('<{}>' | safe).format('<x>') }} {{ ('-' | safe).join(['<', '>']) }} {{ ['<', '>'] | join('-' | safe) + '<' }} {{ ('<b>' | safe) is escaped }} {{ '<' is escaped }} {{ ('<b>' | safe) is string }} {{ ('<b>' | safe) == '<b>' }} {{ [('<' | safe)] }} {{ ('x<' | safe)[1:] + '<' }} {{ ('<' | safe).replace('<', '>') }} {{ (' <' | safe) | trim + '<' }} {{ ('<' | safe) | replace('<', '>') + '<' }} {{ ('<' | safe) | tojson }} {{ 5 | safe + 'a<' }}
{% set x %}a b{% endset %}{{ x }} {% set y | upper | replace('A', 'b') %}a b{% endset %}{{ y }} {% filter upper %}abc {{ s }}{% endfilter %} {% filter replace('a', 'x') | upper %}banana{% endfilter %} {% with a = 1, b = x %}{{ a }}{{ b }}{% endwith %}{{ a }} {% with %}{% set z = 5 %}{{ z }}{% endwith %}{{ z }}
{% macro m(a) %}<{{ a }}{{ caller('c', k=2) }}>{% endmacro %}{% call(x, k=1) m('A') %}[{{ x }}{{ k }}]{% endcall %} {% macro v(a) %}{{ a }}|{{ varargs }}|{{ kwargs }}{% endmacro %}{{ v(1, 2, 3, z=4) }} {{ v() }} {% macro p(a, b, c=9) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ p(*[1, 2]) }} {{ p(*l) }} {{ p(**{'a': 1, 'b': 2}) }} {{ p(1, *[2], c=3) }}
{% macro n() %}x{% endmacro %}{% call n() %}y{% endcall %}
{% macro n(a) %}x{% endmacro %}{{ n(1, a=2) }}
{% for i in [[1, [2, [3]]], 4] recursive %}{{ loop.depth }}{{ loop.depth0 }}:{% if i is iterable %}({{ loop(i) }}){% else %}{{ i }}{% endif %}{% endfor %} {% for a in [1, 2] %}{% for b in [3] %}{{ loop.depth }}{% endfor %}{% endfor %} {% for a in [1, 1, 2] %}{{ loop.changed(a) }} {% endfor %}
{{ '%s-%d-%05.1f-%r-%%' % ('a', 3, 2.25, 'q') }} {{ '%s' % 5 }} {{ '%5s|%-5s|' % ('a', 'b') }} {{ '%x %X %o %e %g' % (255, 255, 8, 12345.678, 0.00001) }} {{ '%(k)s=%(v)d' % {'k': 'a', 'v': 2} }} {{ '%+d % d' % (1, 2) }} {{ '%s' % [1, 2] }} {{ '%d' % 3.9 }} {{ '%.3s' % 'abcdef' }} {{ "%s, %s!" | format('Hi', 'you') }} {{ '%(a)s' | format(a=1) }}
{{ '{} {}'.format(1, 'a') }} {{ '{1}{0}{1}'.format('a', 'b') }} {{ '{n}={v!r}'.format(n='x', v='y') }} {{ '{:>5}|{:<5}|{:^5}|{:*^7}'.format('a', 'b', 'c', 'd') }} {{ '{:05d} {:.2f} {:,} {:x} {:+} {:%}'.format(42, 3.14159, 1234567, 255, 1, 0.25) }} {{ '{{}}'.format() }} {{ '{:e} {:g} {}'.format(12345.678, 0.5, 1.0) }} {{ '{:02}:{:3}|'.format(7, 'a') }} {{ '{:.2}'.format('abc') }} {{ '{}'.format(true) }} {{ '{:d}'.format(true) }}
{{ '%d' % 'a' }}
{{ '%s %s' % 'a' }}
{{ '%s' % (1, 2) }}
{{ '{}'.format() }}
{{ '{:q}'.format(1) }}
{{ 'a-b-c'.partition('-') }} {{ 'a-b-c'.rpartition('-') }} {{ 'abc'.partition('-') }} {{ 'abc'.rpartition('-') }} {{ 'ab'.center(7, '*') }} {{ 'abc'.center(8) }}| {{ 'ab'.ljust(4) }}| {{ 'ab'.rjust(4, '0') }} {{ '-7'.zfill(4) }} {{ 'Ab ß'.swapcase() }} {{ 'Straße'.casefold() }} {{ 'abcabc'.index('c') }} {{ 'abcabc'.rindex('c') }} {{ 'ab1'.isalnum() }} {{ 'é'.isascii() }} {{ '½'.isnumeric() }} {{ '12'.isdecimal() }}
{{ 'abc'.index('z') }}
{{ [1, 2, 3, 4, 5] | batch(2) | list }} {{ [1, 2, 3] | batch(2, 'x') | list }} {{ [1, 2, 3, 4, 5] | slice(3) | list }} {{ [1, 2, 3, 4, 5] | slice(3, 'x') | list }} {% for g, items in [{'t': 'b', 'v': 1}, {'t': 'a', 'v': 2}, {'t': 'b', 'v': 3}] | groupby('t') %}{{ g }}:{{ items | map(attribute='v') | join(',') }};{% endfor %}
{{ 'foo bar baz qux' | truncate(9) }} {{ 'foo bar baz qux' | truncate(9, true) }} {{ 'foo bar baz qux' | truncate(11) }} {{ 'foo bar baz qux' | truncate(11, false, '...', 0) }} {{ 'one two  three' | wordcount }} {{ 'a b/c?d=é&' | urlencode }} {{ {'a': 1, 'b c': '&'} | urlencode }} {{ '<p>a  <b>b</b> &lt;</p><!-- c -->' | striptags }} {{ 'ab' | center(6) }}| {{ d | attr('a') }} {{ 'x' | attr('upper') is defined }}
{{ [1, 2] | sum(start=10) }} {{ [{'a': 1}, {'a': 2}] | sum('a') }} {{ [[1], [2]] | sum(start=[]) }} {{ ['b', 'a', 'C'] | sort(case_sensitive=true) }} {{ ['b', 'C'] | max }} {{ [{'x': [5, 6]}] | map(attribute='x.1') | list }} {{ [[7, 8]] | map(attribute=1) | list }} {{ 'upper' is filter }} {{ 'nope' is filter }} {{ 'odd' is test }} {{ d['items'] is defined }} {{ d['b'] }} {{ s['upper']() }} {% set j = joiner('+') %}{{ j() }}a{{ j() }}b{{ j() }}
{{ [1, 2].index(2) }} {{ (1, 2, 1).count(1) }} {{ d.copy().b }} {{ l.copy() }} {{ dict([('a', 1), ('b', 2)]) }} {{ dict({'a': 1}, b=2) }} {{ namespace(a=1).a }}
{{ {1: 'a'}.update({2: 'b'}) }}
{{ d | tojson(indent=4, separators=(',', ' : ')) }} {{ 'é' | tojson(ensure_ascii=true) }} {{ '<&\'>' | tojson }} {{ d | tojson(sort_keys=true) }} {{ (1, 'a') | tojson }} {{ [none, true, 1.5, 'x'] | tojson(separators=(',', ':')) }}
{{ strftime_now('%d %b %Y') }} {{ strftime_now('') }}|{% generation %}said{% endgeneration %}
{{ 1 if false }}|{{ (1 if false) is defined }} {{ [1, 2, 3][::2] }} {{ (1, 2, 3)[1:] }} {{ 'abc'[-2] }} {{ [] or {} or 0 or 'x' }} {{ 3 is in [1, 2, 3] }} {{ 'a' is in 'abc' }} {{ 5 is not in [1] }} {{ x is gt 5 and x is lt(9) }}
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
