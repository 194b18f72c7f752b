"""Workers of two machines on one PostgreSQL server, one of which is killed."""

from __future__ import annotations

import getpass
import os
import platform
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import warm_context

from gloss_graph.studies import read_results
from gloss_graph.studies.engine import open_storage, read_rows
from studies.toys import Logged, study

pytest.importorskip("optuna", reason="the extra 'tune' is not installed")
pytest.importorskip("psycopg", reason="the extra 'postgres' is not installed")

TRIALS = 12


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """URL of a server that lives as long as the tests."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    place = found[-1].parent if found else None
    if place is None and shutil.which("initdb"):
        place = Path(str(shutil.which("initdb"))).parent
    if place is None:
        pytest.skip("no PostgreSQL server is installed (Debian's package postgresql)")
    user = getpass.getuser()
    if os.geteuid() == 0:  # which the server refuses
        user = "postgres"
        try:
            pwd.getpwnam(user)
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    # The name of a socket must be short.
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    other: dict[str, Any] = {}
    if os.geteuid() == 0:
        shutil.chown(folder, user)
        other = {"user": user, "cwd": folder}

    def call(name: str, *words: str) -> None:
        command = [str(place / name), "-D", str(folder / "data"), *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **other)

    try:
        call("initdb", "-A", "trust", "-U", "worker", "--no-sync")
        settings = f"-k {folder} -c listen_addresses='' -c fsync=off"
        call("pg_ctl", "-w", "-l", str(folder / "log"), "-o", settings, "start")
        try:
            yield f"postgresql://worker@/postgres?host={folder}"
        finally:
            call("pg_ctl", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def work_on(url: str, folder: str, log: str, machine: str) -> None:
    """Body of a worker on a machine of that name."""
    platform.node = lambda: machine
    logged = Logged(Path(log), 0.4)
    study(logged, seeds=1).run(folder, progress=False, storage=url, heartbeat=1)


@pytest.mark.slow  # by default `test_crashes.py` kills workers on SQLite
def test_every_trial_has_one_result_though_a_worker_is_killed(server: str, tmp_path: Path) -> None:
    context = warm_context()
    logs = {name: tmp_path / f"{name}.log" for name in ("one", "other")}
    workers = {
        name: context.Process(target=work_on, args=(server, str(tmp_path / name), str(log), name))
        for name, log in logs.items()
    }
    for worker in workers.values():
        worker.start()
    deadline = time.monotonic() + 120
    while not all(log.exists() for log in logs.values()):
        assert time.monotonic() < deadline
        assert all(worker.is_alive() for worker in workers.values())
        time.sleep(0.01)
    time.sleep(0.2)  # in the middle of a trial
    os.kill(workers["one"].pid or 0, signal.SIGKILL)
    workers["one"].join()
    workers["other"].join(120)
    assert workers["other"].exitcode == 0

    with open_storage(server) as storage:
        rows = read_rows(storage)
    assert Counter(row["id"] for row in rows) == {row["id"]: 1 for row in rows}
    assert len(rows) == TRIALS
    # The folder of the worker that is left holds the trials of both.
    table = read_results(tmp_path / "other").table
    assert sorted(table["trial"]) == sorted(row["id"] for row in rows)
    assert {worker.partition(":")[0] for worker in table["worker"]} == {"one", "other"}
    assert (table["status"] == "ok").all()
    # What the killed worker was at is run again, once.
    calls = Counter(
        tuple(line.split()[:3]) for log in logs.values() for line in log.read_text().splitlines()
    )
    assert len(calls) == TRIALS
    assert sum(calls.values()) <= TRIALS + 1
