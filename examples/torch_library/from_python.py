"""attzoo's operators in Python, checked by PyTorch's own check of operators:

    python3 examples/torch_library/from_python.py build/examples/libattzoo_ops.so [LIBTORCH]

Needs the torch that they were built with, in the folder LIBTORCH if one is given; without it says so and exits with
status 77.
"""

import os
import sys

try:
    import torch
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)
if len(sys.argv) > 2 and not os.path.samefile(sys.argv[2], torch.__path__[0]):
    print(f"skipped: {torch.__path__[0]} is not {sys.argv[2]}")
    sys.exit(77)

torch.ops.load_library(sys.argv[1])
torch.manual_seed(0)


def random(*sizes):
    return torch.randn(sizes, requires_grad=True)


q, k, v = random(2, 4, 100, 16), random(2, 4, 100, 16), random(2, 4, 100, 8)
output, lse = torch.ops.attzoo.window_attention(q, k, v, 8, 0)
place = torch.arange(100)
near = (place[:, None] >= place) & (place[:, None] - place <= 8)
wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, near)
torch.testing.assert_close(output, wanted)
torch.testing.assert_close(torch.autograd.grad(output.sin().sum(), (q, k, v)),
                           torch.autograd.grad(wanted.sin().sum(), (q, k, v)))

decay, beta = -torch.rand(2, 4, 100), torch.rand(2, 4, 100)
rule = (q, k * 0.1, v, decay.requires_grad_(), beta.requires_grad_())
for op, arguments in ((torch.ops.attzoo.window_attention.default, (q, k, v, 8, 0)),
                      (torch.ops.attzoo.gated_delta_rule.default, tuple(t.detach().requires_grad_() for t in rule))):
    print(op, torch.library.opcheck(op, arguments))
