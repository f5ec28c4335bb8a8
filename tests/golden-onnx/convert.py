"""Writes ONNX's node test cases of attention as files of this folder (needs the package onnx >= 1.23, and numpy):

    python convert.py [--op OP ...] [--seed N] [--makers FILE.py ...] [--data FOLDER ...] [OUT]

The cases are those that onnx's own makers draw (onnx.backend.test.case.node), of OP (default: those below), with the numbers of seed N (default 0, as onnx publishes them); or in their place those of modules
that are written like onnx's (--makers), and of folders with `model.onnx` and `test_data_set_*` (--data). OUT is this
folder by default.

A file has the metadata `onnx` (the package's version), `op` and `attributes` (JSON, with the schema's defaults), and
the tensors in.NAME and out.NAME, by the schema's names, in the case's own types.
"""

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import numpy
import onnx
from onnx.backend.test.case import node as makers

OPS = ["Attention", "FlexAttention", "RotaryEmbedding", "LinearAttention", "CausalConvWithState"]
DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
          "bool": "BOOL"}


def save(path, tensors, metadata):
    """A safetensors file; the package of that name has no bfloat16 from numpy."""
    header, data = {"__metadata__": metadata}, b""
    for name, t in sorted(tensors.items()):
        header[name] = {"dtype": DTYPES[t.dtype.name], "shape": list(t.shape),
                        "data_offsets": [len(data), len(data) + t.nbytes]}
        data += numpy.ascontiguousarray(t).tobytes()
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def attributes(node, schema):
    """Those of the node, and the defaults of the others."""
    values = {name: onnx.helper.get_attribute_value(a.default_value) for name, a in schema.attributes.items()
              if a.default_value.type}
    values.update((a.name, onnx.helper.get_attribute_value(a)) for a in node.attribute)
    return {name: plain(v) for name, v in values.items()}


def plain(value):
    """As JSON has it. Of a graph its name and its constants."""
    if isinstance(value, onnx.GraphProto):
        constants = {c.name: onnx.numpy_helper.to_array(c) for c in value.initializer}
        return {"name": value.name, **{k: float(v) for k, v in constants.items() if v.ndim == 0 and numpy.isfinite(v)}}
    return value.decode() if isinstance(value, bytes) else value


def as_array(value):
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else numpy.asarray(value)


def named(formal, actual, values):
    """The values of what is there by the names of the schema: a node may leave out what is optional."""
    present = [parameter.name for parameter, name in zip(formal, actual) if name]
    assert len(present) == len(values), (present, len(values))
    return {name: as_array(value) for name, value in zip(present, values)}


def write(out, name, model, inputs, outputs):
    node, = model.graph.node
    version = max(o.version for o in model.opset_import if o.domain == node.domain)
    schema = onnx.defs.get_schema(node.op_type, version, node.domain)
    tensors = {f"in.{k}": v for k, v in named(schema.inputs, node.input, inputs).items()}
    tensors |= {f"out.{k}": v for k, v in named(schema.outputs, node.output, outputs).items()}
    save(out / f"{name.removeprefix('test_')}.safetensors", tensors,
         {"onnx": onnx.__version__, "op": node.op_type, "attributes": json.dumps(attributes(node, schema))})


def made(seed, files):
    """The cases of onnx, or of these files: they are made while their modules are imported."""
    set_seed = numpy.random.seed
    numpy.random.seed = lambda *args, **kwargs: set_seed(seed)
    cases = makers.collect_testcases()
    first = len(cases) if files else 0
    for file in files:
        spec = importlib.util.spec_from_file_location(Path(file).stem, file)
        sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    for case in cases[first:]:
        for inputs, outputs in case.data_sets:
            yield case.name, case.model, inputs, outputs


def stored(folder):
    """The cases of onnx's folders of models and tensors, wherever they lie below."""
    for path in sorted(Path(folder).rglob("model.onnx")):
        model = onnx.load(path)
        for i, data in enumerate(sorted(path.parent.glob("test_data_set_*"))):
            def read(kind):
                return [onnx.load_tensor(data / f"{kind}_{i}.pb") for i in range(len(list(data.glob(f"{kind}_*.pb"))))]
            yield path.parent.name + (f"_{i}" if i else ""), model, read("input"), read("output")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--makers", action="append", default=[])
    parser.add_argument("--data", action="append", default=[])
    parser.add_argument("out", nargs="?", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    cases = [case for folder in args.data for case in stored(folder)]
    if args.makers or not args.data:
        cases += made(args.seed, args.makers)
    count = 0
    for name, model, inputs, outputs in cases:
        # An expanded case is the same one by other operators.
        if len(model.graph.node) == 1 and model.graph.node[0].op_type in (args.op or OPS):
            write(args.out, name, model, inputs, outputs)
            count += 1
    print(f"{count} cases")


main()
