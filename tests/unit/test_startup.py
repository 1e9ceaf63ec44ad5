"""services.runtime.startup: Ctrl-C while modules load ends a process by the signal, without a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from services.runtime.startup import end_with_parent, loading

ROOT = Path(__file__).resolve().parents[2]
SLOW = """
import sys, time
from services.runtime.startup import loading
with loading():
    print("loading", flush=True)
    time.sleep(3600)
"""


def test_ctrl_c_while_loading_leaves_no_traceback() -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", SLOW], env=env, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGINT)
        _, printed = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGINT
    assert printed == ""


def test_what_ctrl_c_did_before_it_does_again() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ImportError), loading():
        raise ImportError
    assert signal.getsignal(signal.SIGINT) is before


def test_another_thread_may_load_too() -> None:
    loaded: list[bool] = []

    def load() -> None:
        with loading():
            loaded.append(True)

    thread = threading.Thread(target=load)
    thread.start()
    thread.join(120)
    assert loaded == [True]


def test_without_a_parent_nothing_is_tied() -> None:
    end_with_parent({})
    end_with_parent({"POFL_PARENT": "no number"})
