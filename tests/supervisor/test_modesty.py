from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import os, threading
from artifactsync.supervisor.modesty import Modesty, _threads

def now():
    return sorted({(os.sched_getscheduler(t), os.getpriority(os.PRIO_PROCESS, t)) for t in _threads()})

end = threading.Event()
threading.Thread(target=end.wait).start()
before, modesty = now(), Modesty()
modesty.lower()
lowered = now()
threading.Thread(target=end.wait).start()  # one that is started meanwhile
modesty.raise_again()
modesty.raise_again()
after = now()  # while the threads are there
end.set()
print(before, lowered, after, sep="\\n")
"""


def test_all_threads_step_back_and_come_back():
    out = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60).stdout
    before, lowered, after = (eval(line) for line in out.splitlines())
    # A test that is itself run on idle time (chrt -i) stays there.
    expected = os.SCHED_BATCH if before[0][0] == os.SCHED_OTHER else before[0][0]
    assert [scheduler for scheduler, _ in lowered] == [expected]
    assert lowered[0][1] >= before[0][1]
    assert after == before


def test_the_command_is_not_lowered(machine):
    out, _ = machine.run("print(os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0))")
    assert out == f"{os.sched_getscheduler(0)} {os.getpriority(os.PRIO_PROCESS, 0)}\n"
