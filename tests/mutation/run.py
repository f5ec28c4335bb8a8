#!/usr/bin/env python3
"""Plants faults into attzoo's headers, one at a time, and asks whether the tests notice.

    tests/mutation/run.py                  all faults of faults.py but those that were caught before
    tests/mutation/run.py --only decode    those whose file, kind or test has this in it
    tests/mutation/run.py --kernels        those that need no LibTorch
    tests/mutation/run.py --write          result.md, of what the latest runs found; plants nothing
    tests/mutation/run.py --list           what there is

A fault is planted into a copy of include/, never into the tree itself, and compiled into the smallest test
program that ought to notice it. It is caught if that program fails, crashes or does not end; without the fault
it must pass. Kernels' tests are compiled whole, for AVX2 alone, in a third of the time. Other tests are compiled
once, as tests of attzoo::compiled, and linked with what the header with the fault defines, compiled anew, before
the library build/libattzoo.a (`cmake --preset default && cmake --build build --target attzoo_compiled`), so that
the first definition of a function, the one with the fault, is taken.

A fault that gave no answer, because the machine had no time for it, is planted again in the next run.

Ends with 1 if a fault survives that faults.py does not explain, does not compile, or is not in its file once.
"""

import argparse
import concurrent.futures
import datetime
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from faults import FAULTS

ROOT = Path(__file__).resolve().parent.parent.parent
INCLUDE, TESTS, RESULT = ROOT / "include", ROOT / "tests", ROOT / "tests/mutation/result.md"
LIMIT = 600  # seconds that anything may take; of the machine's time, not of its own
ENVIRONMENT = dict(os.environ, ATTZOO_ISA="avx2", OMP_NUM_THREADS="2", OMP_WAIT_POLICY="PASSIVE")
# What some headers of the tests need to be linked.
SUPPORT = {"every_mechanism.hpp": ["every_mechanism"],
           "mechanism_contract.hpp": ["mechanism_contract", "module_contract"],
           "documents_contract.hpp": ["module_contract"],
           "wrapper_contract.hpp": ["module_contract"],
           "recurrence_contract.hpp": ["recurrence_contract", "module_contract"]}


class DoesNotCompile(Exception):
    """Its text is what the compiler says."""


class NoAnswer(Exception):
    """A program neither ended nor used its time up."""


def replaced(text, old, new, where):
    """The text with `new` in the place of `old`, which must occur once."""
    if text.count(old) != 1:
        sys.exit(f"tests/mutation: {where} has {text.count(old)} times, not once:\n{old}")
    return text.replace(old, new)


def source_of(fault):
    return INCLUDE / "attzoo" / fault.file


def planted(fault):
    return replaced(source_of(fault).read_text(), fault.old, fault.new, fault.file)


def needs_torch(fault):
    return not fault.test.startswith("kernel/")


def definitions_of(header):
    """Header and layer of what is compiled once in the library: of x.ipp those of x.hpp."""
    path = re.sub(r"\.ipp$", ".hpp", header)
    found = re.search(r"^#ifdef ATTZOO_DEFINE_([A-Z]+)$", (INCLUDE / "attzoo" / path).read_text(), re.M)
    return path, found and found[1], found and found.start()


def is_in_library(fault):
    """Whether the fault is in what the library alone compiles, so that the test's object stays as it is."""
    if fault.file.startswith("kernel/"):
        return True
    _, layer, begin = definitions_of(fault.file)
    if fault.file.endswith(".ipp"):
        return True
    return bool(layer) and source_of(fault).read_text().index(fault.old) > begin


def run(command, limit, **options):
    """Exit status, None if it ran too long, and what it said. Ends with all its children."""
    with subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          errors="replace", start_new_session=True, **options) as process:
        try:
            said, _ = process.communicate(timeout=limit)
            return process.returncode, said
        except BaseException as error:
            os.killpg(process.pid, 9)
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                return None, ""
            raise


class Build:
    """Compiles and runs tests; what does not change with a fault is compiled once, into `folder`."""

    def __init__(self, folder, cmake, torch, compiler):
        self.folder, self.cmake = folder, cmake
        cache = (cmake / "CMakeCache.txt").read_text() if (cmake / "CMakeCache.txt").exists() else ""

        def cached(name):
            found = re.search(rf"^{name}:[A-Z]+=(.+)$", cache, re.M)
            return found and found[1]

        self.compiler = compiler or cached("CMAKE_CXX_COMPILER") or "g++"
        self.torch = torch or cached("ATTZOO_TORCH_ROOT")
        self.stamp = hashlib.sha1(str((self.compiler, self.torch, cmake)).encode()).hexdigest()[:8]

    def check_torch(self):
        library = self.cmake / "libattzoo.a"
        if not self.torch or not library.exists():
            sys.exit(f"tests/mutation: needs {library} and a LibTorch (--build, --torch); --kernels needs neither")
        self.once("precompiled.hpp.gch", [ROOT / "support/precompiled.hpp"], lambda to: self.compile(
            ["-x", "c++-header", ROOT / "support/precompiled.hpp"], to, INCLUDE, precompiled=False))

    def once(self, name, sources, make):
        """The file `name`, made again if a source, or what is said of `sources`, is another than it was."""
        to = self.folder / self.stamp / name
        mark = to.with_name(to.name + ".of")
        text = hashlib.sha1("".join(s.read_text() if isinstance(s, Path) else s for s in sources).encode())
        if not (to.exists() and mark.exists() and mark.read_text() == text.hexdigest()):
            to.parent.mkdir(parents=True, exist_ok=True)
            make(to)
            mark.write_text(text.hexdigest())
        return to

    def call(self, command):
        status, said = run(command, LIMIT)
        if status is None:
            raise NoAnswer(f"{LIMIT} s are over")
        if status != 0:
            raise DoesNotCompile(said[:2000])

    def compile(self, source, to, include, precompiled=True):
        torch = Path(self.torch) / "include"
        first = ["-include", self.folder / self.stamp / "precompiled.hpp"] if precompiled else []
        self.call([self.compiler, "-std=c++20", "-O0", "-w", "-fopenmp", "-DATTZOO_COMPILED",
                   f'-DATTZOO_SOURCE_DIR="{ROOT}"', f'-DATTZOO_CXX="{self.compiler}"', '-DATTZOO_GENERATE=""',
                   *first, f"-I{ROOT}", f"-I{include}", f"-I{TESTS}", "-isystem", torch,
                   "-isystem", torch / "torch/csrc/api/include", "-c", *source, "-o", to])

    def compile_kernel_test(self, test, to, include):
        self.call([self.compiler, "-std=c++20", "-O0", "-w", f"-I{include}", f"-I{TESTS}", TESTS / test, "-o", to,
                   "-lgtest_main", "-lgtest", "-lpthread"])

    def link(self, objects, to):
        lib = Path(self.torch) / "lib"
        self.call([self.compiler, *objects, self.cmake / "libattzoo.a", "-o", to, "-fopenmp",
                   "-Wl,--allow-multiple-definition", "-Wl,--no-as-needed", "-Wl,--allow-shlib-undefined",
                   f"-Wl,-rpath,{lib}", lib / "libtorch_cpu.so", lib / "libc10.so",
                   "-lgtest_main", "-lgtest", "-lpthread", "-ldl"])

    def objects_of(self, test):
        """The test's own, then those of tests/support, none with a fault."""
        def compiled(path):
            texts = [path, *INCLUDE.rglob("*.hpp"), *TESTS.glob("support/*.hpp")]
            name = str(path.relative_to(TESTS)).replace("/", "_") + ".o"
            return self.once(name, sorted(texts), lambda to: self.compile([path], to, INCLUDE))

        headers = re.findall(r'#include "support/(\w+\.hpp)"', (TESTS / test).read_text())
        support = sorted({name for header in headers for name in SUPPORT.get(header, [])})
        return [compiled(TESTS / test), *(compiled(TESTS / f"support/{name}.cpp") for name in support)]

    def program(self, fault, tree, to):
        """The test program, with the fault of the include tree `tree`; without one if it is INCLUDE."""
        if not needs_torch(fault):
            return self.compile_kernel_test(fault.test, to, tree)
        own, *others = self.objects_of(fault.test)
        if tree == INCLUDE:
            return self.link([own, *others], to)
        if not is_in_library(fault):
            own = to.with_name("test.o")
            self.compile([TESTS / fault.test], own, tree)
        through = fault.through or ([fault.file] if is_in_library(fault) else [])
        parts = []
        for number, file in enumerate(through):
            parts.append(to.with_name(f"fault{number}.o"))
            if file.startswith("src/"):
                self.compile([ROOT / file], parts[-1], tree)
                continue
            header, layer, _ = definitions_of(file)
            source = to.with_name(f"fault{number}.cpp")
            source.write_text(f"#define ATTZOO_DEFINE_{layer}\n#include <attzoo/{header}>\n")
            self.compile([source], parts[-1], tree)
        return self.link([*parts, own, *others], to)


def only_avx2(tree):
    """Takes the other instruction sets' bodies out of a copy of include/."""
    isa = tree / "attzoo/kernel/isa"
    each = (isa / "each.inc").read_text()
    for name in ("portable", "avx512"):
        each = replaced(each, f"#include <attzoo/kernel/isa/{name}.inc>\n", "", "isa/each.inc")
    (isa / "each.inc").write_text(each)
    table = (isa / "table.hpp").read_text()
    table, count = re.subn(r'(X\(k\w+, "\w+", )(portable|avx512),', r"\1avx2,", table)
    if count < 4:
        sys.exit("tests/mutation: isa/table.hpp looks otherwise than it did")
    (isa / "table.hpp").write_text(table)


def copy_of_include(folder, fault, has_fault):
    tree = folder / "include"
    shutil.copytree(INCLUDE, tree)
    if has_fault:
        (tree / "attzoo" / fault.file).write_text(planted(fault))
    if fault.file.startswith("kernel/"):
        only_avx2(tree)
    return tree


def execute(program, fault, seconds):
    """What is wrong, "" if nothing, and how long it took. May use so many seconds of a core: on a machine that does
    other things, too, it may take as long as it likes."""
    begin = time.monotonic()
    status, said = run(["sh", "-c", f'ulimit -t {seconds:.0f} && exec "$0" "$@"', program,
                        f"--gtest_filter={fault.filter}", "--gtest_fail_fast", "--gtest_brief=1"],
                       LIMIT, env=ENVIRONMENT, cwd=program.parent)
    took = time.monotonic() - begin
    failed = re.findall(r"^\[  FAILED  \] (\S+?),?(?: |$)", said, re.M)
    if status is None:
        raise NoAnswer(f"{LIMIT} s are over")
    if failed:
        return failed[0], took
    if status in (-signal.SIGXCPU, -signal.SIGKILL):
        return "does not end", took
    if status != 0:
        return f"crashes ({status})", took
    if not re.search(r"\[  PASSED  \] [1-9]", said):
        sys.exit(f"tests/mutation: {fault.test} has no test '{fault.filter}'")
    return "", took


def seconds_without(build, fault):
    """How long the test takes, which must pass without the fault."""
    def make(to):
        with tempfile.TemporaryDirectory() as temporary:
            program = Path(temporary) / "test"
            tree = INCLUDE if needs_torch(fault) else copy_of_include(Path(temporary), fault, has_fault=False)
            build.program(fault, tree, program)
            wrong, seconds = execute(program, fault, LIMIT)
        if wrong:
            sys.exit(f"tests/mutation: without any fault, {fault.test} {fault.filter}: {wrong}")
        to.write_text(f"{seconds:.1f}")

    name = re.sub(r"\W+", "_", f"{fault.test} {fault.filter}") + ".seconds"
    texts = [*INCLUDE.rglob("*.*"), *TESTS.glob("*/*.hpp"), TESTS / fault.test]
    return float(build.once(name, sorted(texts), make).read_text())


def key_of(fault):
    """Changes with the fault and its file."""
    return hashlib.sha1("\0".join([fault.file, fault.old, planted(fault)]).encode()).hexdigest()


def judge(build, fault, usual):
    """The record of one fault."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tree = copy_of_include(folder, fault, has_fault=True)
        try:
            build.program(fault, tree, folder / "test")
            noticed, _ = execute(folder / "test", fault, 20 + 5 * usual)
            state = "caught" if noticed else "survives"
        except DoesNotCompile as error:
            state, noticed = "does not compile", str(error)
        except NoAnswer as error:
            state, noticed = "no answer", str(error)
    return {"key": key_of(fault), "file": fault.file, "kind": fault.kind, "test": fault.test, "state": state,
            "by": noticed, "seconds": round(time.monotonic() - begin, 1)}


def output(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT,
                          env=dict(os.environ, LC_ALL="C")).stdout.strip()


def part_of(fault):
    """The row of the table that a fault counts in."""
    folder = fault.file.rpartition("/")[0]
    if folder.startswith("kernel"):
        return folder
    return folder.partition("/")[0] if folder.partition("/")[0] in ("core", "functional", "module", "io") \
        else "mechanisms"


def write(build, records):
    """The page of results; all faults must have one."""
    missing = [f for f in FAULTS if key_of(f) not in records]
    if missing:
        sys.exit(f"tests/mutation: {len(missing)} faults have no result yet, as {missing[0].file}: {missing[0].kind}")
    by_part, survivors = {}, []
    for fault in FAULTS:
        record = records[key_of(fault)]
        counts = by_part.setdefault(part_of(fault), [0, 0])
        counts[0] += record["state"] == "caught"
        counts[1] += 1
        if record["state"] != "caught":
            survivors.append(fault)
    caught = sum(counts[0] for counts in by_part.values())
    model = re.search(r"^Model name: +(.+)$", output("lscpu"), re.M)[1]
    date = f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}"
    commit = output("git", "rev-parse", "--short=10", "HEAD")
    lines = [
        "# Planted faults", "",
        f"{caught} of {len(FAULTS)} faults are caught. Written by `tests/mutation/run.py --write`; the faults are "
        "those of [faults.py](faults.py).", "",
        f"{date}, commit {commit}, {model} with AVX2, {output(build.compiler, '--version').splitlines()[0]}.", "",
        "| part | caught | planted |", "|---|---:|---:|",
        *(f"| {part} | {counts[0]} | {counts[1]} |" for part, counts in sorted(by_part.items())), "",
        "## Survivors", ""]
    for fault in survivors:
        lines += [f"- `{fault.file}`, {fault.kind}: {fault.lives or 'not explained yet'}"]
    lines += ["None."] if not survivors else []
    RESULT.write_text("\n".join(lines) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="PATTERN", default="", help="an expression; in file, kind or test")
    parser.add_argument("--kernels", action="store_true", help="only faults whose tests need no LibTorch")
    parser.add_argument("--list", action="store_true", help="say what there is, and plant nothing")
    parser.add_argument("--write", action="store_true", help="only write result.md")
    parser.add_argument("--again", action="store_true", help="also what was caught before")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="so many at once; default 1")
    parser.add_argument("--build", type=Path, default=ROOT / "build", help="CMake's folder; default build/")
    parser.add_argument("--torch", metavar="DIR", help="LibTorch; default the one of --build")
    parser.add_argument("--compiler", help="default the one of --build, or g++")
    parser.add_argument("--work", type=Path, default=ROOT / "build/mutation", help="default build/mutation")
    arguments = parser.parse_args()
    chosen = [f for f in FAULTS if re.search(arguments.only, f"{f.file} {f.kind} {f.test}")
              and not (arguments.kernels and needs_torch(f))]
    for fault in FAULTS:
        planted(fault)  # or an error
    if arguments.list:
        for fault in chosen:
            print(f"{fault.file}: {fault.kind}  ({fault.test} {fault.filter})")
        print(f"{len(chosen)} faults")
        return 0
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    log = work / "results.jsonl"
    records = {}
    for line in log.read_text().splitlines() if log.exists() else []:
        record = json.loads(line)
        records[record["key"]] = record
    build = Build(work, arguments.build.resolve(), arguments.torch, arguments.compiler)
    if arguments.write:
        write(build, records)
        return 0
    left = [f for f in chosen if arguments.again or records.get(key_of(f), {}).get("state") != "caught"]
    if any(map(needs_torch, left)):
        build.check_torch()
    print(f"{len(chosen)} faults, {len(left)} to plant", flush=True)
    usual = [seconds_without(build, fault) for fault in left]  # compiles what all share, so not in parallel
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        judged = [pool.submit(judge, build, *with_seconds) for with_seconds in zip(left, usual)]
        for number, future in enumerate(concurrent.futures.as_completed(judged), 1):
            record = future.result()
            records[record["key"]] = record
            with log.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(f"{number}/{len(left)} {record['file']}, {record['kind']}: {record['state']} "
                  f"{record['by'][:300]} ({record['seconds']} s)", flush=True)
    bad = [f for f in chosen if records[key_of(f)]["state"] != ("survives" if f.lives else "caught")]
    caught = sum(records[key_of(f)]["state"] == "caught" for f in chosen)
    print(f"{caught} of {len(chosen)} are caught")
    for fault in bad:
        print(f"not as faults.py says: {fault.file}, {fault.kind}: {records[key_of(fault)]['state']}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
