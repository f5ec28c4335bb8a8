"""The directive `headers FOLDER` describes all public names of the headers in a folder of include/attzoo ("."
for itself), as Doxygen's XML lists them, by a directive of Breathe's for each."""

from functools import cache
from pathlib import Path, PurePath
from xml.etree import ElementTree

from sphinx.util.docutils import SphinxDirective

xml = Path()  # set by conf.py


def text(element):
    return " ".join("".join(element.itertext()).split()) if element is not None else ""


@cache
def compound(name):
    return ElementTree.parse(xml / f"{name}.xml").getroot().find("compounddef")


@cache
def directives():
    """For each header [(line, directive, argument)]."""
    found = {}

    def add(element, directive, argument):
        location = element.find("location")
        entry = (int(location.get("line")), directive, argument)
        found.setdefault(location.get("file"), []).append(entry)

    namespace = compound("namespaceattzoo")
    for inner in namespace.iter("innerclass"):
        kind = compound(inner.get("refid"))
        if "<" not in inner.text:
            add(kind, f"doxygen{kind.get('kind')}", inner.text)
    for concept in xml.glob("conceptattzoo_1_1*.xml"):
        concept = compound(concept.stem)
        add(concept, "doxygenconcept", concept.findtext("compoundname"))
    members = [member for member in namespace.iter("memberdef") if member.findtext("name") != "get"]
    names = [member.findtext("name") for member in members]
    for member, name in zip(members, names):
        argument = f"attzoo::{name}"
        if names.count(name) > 1:
            types = [f"{text(p.find('type'))} {text(p.find('declname'))}" for p in member.findall("param")]
            argument += f"({', '.join(types)})"
        add(member, f"doxygen{member.get('kind')}", argument)
    return found


class Headers(SphinxDirective):
    required_arguments = 1

    def run(self):
        folder = PurePath("attzoo", self.arguments[0])
        heads = {file.find("location").get("file"): file
                 for file in (compound(file.stem) for file in xml.glob("*_8hpp.xml"))}
        lines = []
        for name in sorted(name for name in directives() if PurePath(name).parent == folder):
            brief = text(heads[name].find("briefdescription"))
            lines += [f"## `<{name}>`", "", brief or text(heads[name].find("detaileddescription/para")), ""]
            for _, directive, argument in sorted(directives()[name]):
                lines += [f"```{{{directive}}} {argument}", "```", ""]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)
