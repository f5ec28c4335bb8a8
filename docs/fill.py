"""Fills in the parts of pages that stand in the sources already, so that they are read there as on the
site: `python3 docs/fill.py`. The site's build fails where a page is older.

    <!-- options NAME -->     ... the table of the members of `struct NAME` in the page's header
    <!-- snippet FILE -->     ... the lines of FILE between `// [page]` and `// [/page]`
    <!-- end -->              ... ends either
"""

import re
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
        kind = re.sub("std::optional<(.*)>", r"\1", kind).removeprefix("torch::")
        value = {"std::nullopt": "", "{}": ""}.get(value, f"`{value}`")
        required = is_options and kind == "int64_t" and value == "`0`"
        rows.append(f"| `{member}` | {kind.removesuffix('_t')} | {'required' if required else value} "
                    f"| {text or ' '.join(above)} |")
        above = []
    return "\n".join(rows)


def snippet(file, page):
    text = (root / file).read_text()
    lines = re.search(r" *// \[%s\]\n(.*?)\n *// \[/%s\]" % (page, page), text, re.DOTALL)[1]
    return f"```cpp\n{textwrap.dedent(lines)}\n```"


def filled(text, page):
    def fill(match):
        write = {"options": options, "snippet": snippet}[match[2]]
        return f"{match[1]}\n{write(match[3], page.stem)}\n<!-- end -->"

    return re.sub(r"(<!-- (options|snippet) (\S+) -->)\n.*?<!-- end -->", fill, text, flags=re.DOTALL)


def pages():
    return sorted(docs.glob("mechanisms/*.md")) + [docs / f"{page}.md" for page in headers]


if __name__ == "__main__":
    for page in pages():
        page.write_text(filled(page.read_text(), page))
