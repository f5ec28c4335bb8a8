#!/usr/bin/env python3
"""Brings 1,797 handwritten digits for examples/digits.cpp.

    python3 examples/get_digits.py [FILE]

The package scikit-learn of PyPI (10 MB) ships them: 8 x 8 pixels of 0 ... 16, and the digit, a line
each; Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998, CC BY 4.0. They are put into FILE, by default models/digits.csv, which git ignores.
Needs pip and a network.
"""

import gzip
import pathlib
import sys

import pypi

PACKAGE = "scikit-learn==1.7.2"
DIGITS = "sklearn/datasets/data/digits.csv.gz"
DIGEST = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"  # SHA-256


def main():
    file = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pypi.ROOT / "models/digits.csv"
    data = pypi.read(PACKAGE, {DIGITS: DIGEST})[DIGITS]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.decompress(data))
    print(file)


if __name__ == "__main__":
    main()
