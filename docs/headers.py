"""```{header} module/inputs.hpp``` describes all public names of a header, in its order: Breathe's directive for
each, under what Doxygen's XML says of the file. `missing()` names the headers that no page describes."""

from functools import cache
from pathlib import Path
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


class Header(SphinxDirective):
    required_arguments = 1

    def run(self):
        name = f"attzoo/{self.arguments[0]}"
        heads = [compound(file.stem) for file in xml.glob("*_8hpp.xml")]
        head = next(head for head in heads if head.find("location").get("file") == name)
        brief = text(head.find("briefdescription")) or text(head.find("detaileddescription/para"))
        lines = [brief, ""]
        for _, directive, argument in sorted(directives()[name]):
            lines += [f"```{{{directive}}} {argument}", "```", ""]
        return self.parse_text_to_nodes("\n".join(lines))


def missing(pages):
    described = "".join(pages)
    return [file for file in directives() if f"{{header}} {file.removeprefix('attzoo/')}\n" not in described]
