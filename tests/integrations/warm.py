"""A process that has imported the frameworks once, which takes longer than all that the tests do with them.

`python -m tests.integrations.warm`: a line of stdin is a job, `{"program", "arguments", "cwd", "env"}`, run in a
forked child, whose output and exit code are one line of stdout. Killing the child kills nothing else.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path


def main() -> None:
    sys.stdout.flush()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a framework prints is no answer
    from tests.integrations import programs  # noqa: PLC0415 - takes long

    gc.freeze()
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        job = json.loads(line)
        with tempfile.TemporaryFile("w+") as output:
            child = os.fork()
            if child == 0:
                _run(programs, job, output.fileno())
            _, status = os.waitpid(child, 0)
            output.seek(0)
            print(json.dumps({"code": os.waitstatus_to_exitcode(status), "output": output.read()}), file=answers)
    os._exit(0)  # without the last words of libraries


def _run(programs, job, output) -> None:
    code = 1
    try:
        os.setsid()
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(job["cwd"])
        os.environ.update(job["env"])
        source = job["program"]
        if "\n" in source:
            exec(compile(source, "docs", "exec"), {"__name__": "__main__"})
        else:
            getattr(programs, source)(*map(Path, job["arguments"][:2]), *job["arguments"][2:])
        code = 0
    except BaseException:  # noqa: BLE001 - the child's end
        traceback.print_exc()
    finally:
        try:
            import atexit  # noqa: PLC0415

            atexit._run_exitfuncs()
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
