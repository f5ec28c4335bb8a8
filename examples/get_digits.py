#!/usr/bin/env python3
"""Brings 1,797 handwritten digits for examples/digits.cpp.

    python3 examples/get_digits.py [FILE]

The package scikit-learn of PyPI (10 MB) ships them: 8 x 8 pixels of 0 ... 16, and the digit, a line
each; Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998, CC BY 4.0. They are put into FILE, by default models/digits.csv, which git ignores.
Needs pip and a network.
"""

import gzip
import hashlib
import pathlib
import subprocess
import sys
import tempfile
import zipfile

PACKAGE = "scikit-learn==1.7.2"
DIGEST = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"  # SHA-256


def main():
    root = pathlib.Path(__file__).resolve().parent.parent
    file = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else root / "models/digits.csv"
    with tempfile.TemporaryDirectory() as temporary:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
             "--dest", temporary, PACKAGE],
            check=True)
        wheel = zipfile.ZipFile(next(pathlib.Path(temporary).glob("*.whl")))
        data = wheel.read("sklearn/datasets/data/digits.csv.gz")
    if hashlib.sha256(data).hexdigest() != DIGEST:
        sys.exit(f"{file}: not the file that was expected")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.decompress(data))
    print(file)


if __name__ == "__main__":
    main()
