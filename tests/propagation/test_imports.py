"""The propagation layer is usable alone: it needs neither a bank nor FAISS."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys, torch
from gloss_graph.propagation import LabelPropagation
layer = LabelPropagation()
edges = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
assert layer(torch.tensor([0, -1, 1]), edges).shape == (3, 2)
loaded = {name for name in sys.modules if name.startswith(("faiss", "gloss_graph."))}
print(sorted(name for name in loaded if not name.startswith(("gloss_graph.propagation",
                                                             "gloss_graph._internal"))))
"""


def test_it_loads_neither_faiss_nor_another_room() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
