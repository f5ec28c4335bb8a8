"""Fills in the parts of pages that stand in the sources already, so that they are read there as on the
site: `python3 docs/fill.py`. With --check nothing is written, and it fails where a page is older, as the
site's build does.

    <!-- options NAME -->        ... the table of the members of `struct NAME` in the page's header
    <!-- snippet FILE [PART] --> ... the lines of FILE between `// [PART]` and `// [/PART]`; default: the page's name
    <!-- program FILE -->        ... all of FILE below the comment at its head
    <!-- badges FILE -->         ... figures of FILE, the page that says how they are measured
    <!-- end -->                 ... ends any of them
"""

import re
import sys
import textwrap
from pathlib import Path

docs = Path(__file__).parent
root = docs.parent
headers = {"masks": "module/inputs", "transformer_block": "module/block_parts"}  # else <page>.hpp


def options(name, page):
    header = (root / f"include/attzoo/{headers.get(page, page)}.hpp").read_text()
    if f"using {name} = GateOptions" in header:
        name, header = "GateOptions", (root / "include/attzoo/module/gate.hpp").read_text()
    body = re.search(r"struct %s \{\n(.*?)\n\};" % name, header, re.DOTALL)[1]
    is_options = name.endswith("Options")
    rows = [f"| {'option' if is_options else 'input'} | type | default | |", "|---|---|---|---|"]
    above = []
    for line in body.split("\n"):
        if comment := re.fullmatch(r"\s*/// (.*)", line):
            above.append(comment[1])
            continue
        kind, member, value, text = re.fullmatch(
            r"\s*(\S+) (\w+) = (.*?);\s*(?:///< (.*))?", line).groups()
        kind = re.sub("std::optional<(.*)>", r"\1", kind).removeprefix("torch::").removeprefix("core::")
        value = {"std::nullopt": "", "{}": ""}.get(value, f"`{value}`")
        required = is_options and kind == "int64_t" and value == "`0`"
        rows.append(f"| `{member}` | {kind.removesuffix('_t')} | {'required' if required else value} "
                    f"| {text or ' '.join(above)} |")
        above = []
    return "\n".join(rows)


def snippet(where, page):
    file, part = where.split() if " " in where else (where, page)
    text = (root / file).read_text()
    found = re.search(r" *// \[%s\]\n(.*?)\n *// \[/%s\]" % (part, part), text, re.DOTALL)
    if not found:
        sys.exit(f"{file} has no part [{part}], which {page}.md shows")
    return code(found[1])


def program(file, page):
    return code((root / file).read_text().split("\n\n", 1)[1])


def badges(file, page):
    text = (root / file).read_text()
    shown = {what: re.search(r"([\d.]+) %% of [\d,]+ %s" % what, text)[1] for what in ["lines", "branches"]}
    image = "https://img.shields.io/badge/{0}_covered-{1}%25-green"
    return "\n".join(f"[![{what} covered: {value}%]({image.format(what, value)})]({file})"
                     for what, value in shown.items())


def code(text):
    text = re.sub(r" *// \[/?\w+\]\n", "", text)  # marks of parts
    return f"```cpp\n{textwrap.dedent(text).strip()}\n```"


def filled(text, page):
    def fill(match):
        write = {"options": options, "snippet": snippet, "program": program, "badges": badges}[match[2]]
        return f"{match[1]}\n{write(match[3], page.stem)}\n<!-- end -->"

    return re.sub(r"(<!-- (options|snippet|program|badges) (\S+(?: \S+)?) -->)\n.*?<!-- end -->", fill, text,
                  flags=re.DOTALL)


def pages():
    return [root / "README.md"] + sorted(docs.glob("**/*.md"))


if __name__ == "__main__":
    for page in pages():
        before, after = page.read_text(), filled(page.read_text(), page)
        if before != after and "--check" in sys.argv:
            sys.exit(f"{page.relative_to(root)} is older than its sources: run python3 docs/fill.py")
        elif before != after:
            page.write_text(after)
