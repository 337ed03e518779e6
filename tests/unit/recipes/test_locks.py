"""Locks between processes: exclusion, waiting, refusal, and children that keep a lock held."""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from recipes.storage import locks
from recipes.storage.locks import LockHeldError, locked

WHAT = "another test works here"


def test_a_held_lock_is_refused_by_the_name_of_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    named = rf"{WHAT} \(process {os.getpid()} on {socket.gethostname()}\); wait for it to end, or stop it"
    with (
        locked(path, what=WHAT, patience=0),
        pytest.raises(LockHeldError, match=named),
        locked(path, what=WHAT, patience=0),
    ):
        pass
    with locked(path, what=WHAT, patience=0):  # it is free again
        pass


def test_another_holder_is_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import time; from pathlib import Path; from recipes.storage.locks import locked\n"
        f"with locked(Path({str(tmp_path / 'lock')!r}), what='', patience=0):\n"
        "    print('held', flush=True); time.sleep(4)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with locked(tmp_path / "lock", what=WHAT, patience=None):
        assert holder.wait(timeout=10) == 0
    assert f"waiting: {WHAT} (process {holder.pid} on {socket.gethostname()})\n" in capsys.readouterr().out


def test_a_child_that_inherits_the_descriptor_keeps_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path, what=WHAT, patience=0) as lock:
        child = subprocess.Popen(["sleep", "100"], stdin=lock.descriptor)
        lock.add_holder(child.pid)
        path.write_text(path.read_text().replace(f"{os.getpid()} ", "999999999 "))  # as if this process had been killed
    with pytest.raises(LockHeldError, match=rf"\(process {child.pid} on \S+\);"), locked(path, what=WHAT, patience=0.3):
        pass
    child.kill()
    child.wait()
    with locked(path, what=WHAT, patience=5):
        pass


def test_a_removed_lock_file_still_excludes(tmp_path: Path) -> None:
    """Several threads that delete the file after their turn never hold it at the same time."""
    path, inside, most = tmp_path / "lock", [0], [0]

    def work() -> None:
        for _ in range(5):
            with locked(path, what=WHAT, patience=None, remove=True):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.001)
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert not path.exists()


def test_a_lock_file_without_names_is_an_unknown_process(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("\x00 garbage\n12\n")
    assert locks._holders(tmp_path / "lock") == "an unknown process"
    assert locks._holders(tmp_path / "none") == "an unknown process"
