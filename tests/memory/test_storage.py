"""A bank in a file: bit for bit, whole or not at all, and clear words about bad files."""

from __future__ import annotations

import json
import os
import random
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gloss_graph import MemoryBank
from gloss_graph.memory.storage import write_bank
from gloss_graph.neighbors import DescentSettings, IVFSettings


def filled(**options: object) -> MemoryBank:
    torch.manual_seed(0)
    bank = MemoryBank(20, 6, **{"k": 3, **options})
    for start in range(0, 30, 6):
        x = torch.randn(6, 6)
        labels = torch.arange(6) % 3
        sets = torch.nn.functional.one_hot(labels, 3).float()
        bank.enqueue(x, sets if bank.num_classes else labels, torch.arange(start, start + 6))
    return bank


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return filled().save(tmp_path / "bank.safetensors")


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dtype": torch.float16, "normalize": False, "search": "matmul"},
        {"k": 0, "search": IVFSettings(cells=3, probes=2)},
        {"num_classes": 3, "search": DescentSettings(width=8)},
    ],
)
def test_round_trip(tmp_path: Path, options: dict[str, object], mmap: bool) -> None:
    bank = filled(**options)
    path = bank.save(tmp_path / "bank.safetensors")
    back = MemoryBank.load(path, mmap=mmap)
    assert repr(back) == repr(bank)
    assert back.settings() == bank.settings()
    assert back.search_backend == bank.search_backend
    before, after = bank.state_dict(), back.state_dict()
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value.dtype == after[name].dtype
        assert torch.equal(value, after[name]), name
    assert torch.equal(back.slots_of(torch.arange(30)), bank.slots_of(torch.arange(30)))
    queries = torch.randn(4, 6)
    assert torch.equal(back.search(queries, 3).slots, bank.search(queries, 3).slots)


def test_empty_banks_round_trip(tmp_path: Path) -> None:
    for capacity in (0, 4):
        bank = MemoryBank(capacity, 3)
        assert repr(MemoryBank.load(bank.save(tmp_path / "bank"), mmap=True)) == repr(bank)


def test_a_mapped_bank_learns_without_changing_its_file(file: Path) -> None:
    before = file.read_bytes()
    one, other = MemoryBank.load(file, mmap=True), MemoryBank.load(file, mmap=True)
    one.enqueue(torch.randn(5, 6), torch.zeros(5).long(), torch.arange(5))
    assert len(one) == 20
    assert file.read_bytes() == before
    assert torch.equal(other.rows, filled().rows)
    one.save(file)  # over the file it is mapped from
    assert torch.equal(MemoryBank.load(file).rows, one.rows)
    assert torch.equal(other.rows, filled().rows)


def test_the_safetensors_library_reads_it(file: Path) -> None:
    state = load_file(file)
    assert {name: value.shape for name, value in state.items()} == {
        name: value.shape for name, value in filled().state_dict().items()
    }


def test_cut_anywhere_it_is_refused_by_name(file: Path) -> None:
    whole = file.read_bytes()
    for length in [*range(0, 64), *range(64, len(whole), 97), len(whole) - 1]:
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=re.escape(str(file))):
            MemoryBank.load(file)
        with pytest.raises(ValueError, match=re.escape(str(file))):
            MemoryBank.load(file, mmap=True)
    file.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match="damaged"):
        MemoryBank.load(file)


def test_a_flipped_byte_is_noticed(file: Path) -> None:
    whole = bytearray(file.read_bytes())
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    draw = random.Random(0)
    for place in [*draw.sample(range(header), 60), *draw.sample(range(header, len(whole)), 60)]:
        if whole[place : place + 1] == b" ":
            continue
        broken = bytearray(whole)
        broken[place] ^= 0x5
        file.write_bytes(broken)
        with pytest.raises(ValueError, match=re.escape(str(file))):
            MemoryBank.load(file)


def rewritten(file: Path, **metadata: str) -> None:
    raw = file.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    header["__metadata__"].update(metadata)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])


def test_foreign_files_are_refused(file: Path, tmp_path: Path) -> None:
    rewritten(file, version="2")
    with pytest.raises(ValueError, match=r"of version 2\. Update gloss-graph"):
        MemoryBank.load(file)
    rewritten(file, version="one")
    with pytest.raises(ValueError, match="its version reads 'one'"):
        MemoryBank.load(file)
    save_file({"rows": torch.zeros(2, 2)}, file)
    with pytest.raises(ValueError, match="a safetensors file of another kind"):
        MemoryBank.load(file)
    file.write_text("text,label\na,b\n")
    with pytest.raises(ValueError, match="damaged, cut short or no safetensors file"):
        MemoryBank.load(file)
    with pytest.raises(ValueError, match="got the folder"):
        MemoryBank.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="There is no bank at"):
        MemoryBank.load(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        filled().save(tmp_path / "no" / "bank")


def test_settings_no_bank_can_have_are_refused(file: Path) -> None:
    raw = json.dumps({**filled().settings(), "k": 4}, sort_keys=True)
    size = struct.unpack("<Q", file.read_bytes()[:8])[0]
    old = json.loads(file.read_bytes()[8 : 8 + size])["__metadata__"]
    sums = {**json.loads(old["crc32"]), "settings": f"{zlib.crc32(raw.encode()):08x}"}
    rewritten(file, settings=raw, crc32=json.dumps(sums))
    with pytest.raises(ValueError, match=r"a bank this version can make.*'k' must be that of"):
        MemoryBank.load(file)


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("rows", lambda x: x.bool()),
        ("rows", lambda x: x.half()),
        ("count", lambda x: x + 99),
        ("slot_ids", lambda x: x.fill_(3)),
        ("written_at", lambda x: x - 99),
    ],
)
def test_a_file_of_values_no_bank_has_is_refused_by_name(
    tmp_path: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor], mmap: bool
) -> None:
    state = {key: value.clone() for key, value in filled().state_dict().items()}
    path = write_bank(tmp_path / "bank", {**state, name: change(state[name])}, filled().settings())
    with pytest.raises(ValueError, match=rf"'{path}' .*{name}"):
        MemoryBank.load(path, mmap=mmap)


# Importing torch takes seconds, so one process does all that needs a process of its own.
SCRIPT = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
from gloss_graph import MemoryBank

def peak():
    status = Path("/proc/self/status")
    return int(status.read_text().split("VmHWM:")[1].split()[0]) >> 10 if status.exists() else 0

torch.set_num_threads(1)
folder, draw = Path(sys.argv[1]), random.Random(0)
found = {}

large = MemoryBank(150_000, 384, k=16, dtype=torch.float16)
large.rows.fill_(1.0)
before = peak()
large.save(folder / "large")
found["grown"] = peak() - before
del large

# Two processes map one file, and write into their banks, at the same time.
file = folder / "bank.safetensors"
bank = MemoryBank(4000, 64, k=2)
bank.save(file)
children = []
for number in (1, 2):
    child = os.fork()
    if child == 0:
        own = MemoryBank.load(file, mmap=True)
        own.rows.fill_(number)
        time.sleep(0.3)
        os._exit(0 if bool((own.rows == number).all()) else 1)
    children.append(child)
found["readers"] = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
found["unchanged"] = bool((MemoryBank.load(file).rows == 0).all())

# How many calls and returns a save takes.
events = 0
def count(*_):
    global events
    events += 1
sys.setprofile(count)
bank.save(file)
sys.setprofile(None)

def die_after(left):
    def count(*_):
        nonlocal left
        left -= 1
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.setprofile(count)

# Half of the savers die after so many calls, from the first to those of the third save, however
# fast the machine is; the others at any time.
last = cut = 0
for kill in range(24):
    child = os.fork()
    if child == 0:
        generation = last
        if kill < 12:
            die_after(int((kill + draw.random()) / 4 * events))
        while True:
            generation += 1
            bank.rows.fill_(generation)
            bank.slot_labels.fill_(generation)
            bank.save(file)
    if kill >= 12:
        time.sleep(draw.uniform(0.0, 0.15))
        os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    cut += len([*folder.glob(".*.part")])
    back = MemoryBank.load(file)
    seen = {*back.rows.unique().tolist(), *back.slot_labels.unique().tolist()} - {-1}
    assert len(seen) == 1 and max(seen) >= last, (seen, last)
    last = int(max(seen))
found["saved"], found["cut"] = last, cut
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path_factory.mktemp("own"))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_killed_at_any_moment_the_old_file_or_the_new_one_is_there(found: dict[str, Any]) -> None:
    # Some saves went through and some died half way, else nothing was tested.
    assert found["saved"] > 3
    assert found["cut"] > 0


def test_two_processes_load_one_file_at_once(found: dict[str, Any]) -> None:
    assert found["readers"] == [0, 0]
    assert found["unchanged"]


def test_saving_needs_no_second_copy(found: dict[str, Any]) -> None:
    # The rows alone are 110 MiB.
    assert found["grown"] < 30


def test_ids_beyond_int64_are_refused() -> None:
    bank = MemoryBank(4, 3)
    with pytest.raises(ValueError, match=r"'ids' must fit int64 .got torch\.uint64"):
        bank.enqueue(torch.randn(1, 3), ids=torch.tensor([2**63], dtype=torch.uint64))
    largest = 2**63 - 1
    bank.enqueue(torch.randn(1, 3), ids=torch.tensor([largest]))
    assert bank.slots_of(torch.tensor([largest])).tolist() == [0]
