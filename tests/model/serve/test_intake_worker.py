"""A decoder can open, send, start and write nothing, and has only so much memory and time."""

import json
import subprocess
import sys

TRIED = """
import json, mmap, os, resource, socket, sys
from afn_model.serve.intake_worker import limit

kept = os.open(sys.argv[1], os.O_RDWR)
limit(1 << 26, 7)

def tried(work):
    try:
        work()
        return "done"
    except Exception as error:
        return type(error).__name__

bytearray(1 << 20)
said = {
    "read": tried(lambda: open("/etc/passwd")),
    "create": tried(lambda: open(sys.argv[1] + "x", "w")),
    "socket": tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM)),
    "pair": tried(socket.socketpair),
    "pipe": tried(os.pipe),
    "write": tried(lambda: os.write(kept, b"x")),
    "memory": tried(lambda: bytearray(1 << 27)),
    "more": tried(lambda: resource.setrlimit(resource.RLIMIT_CPU, (8, 8))) if os.getuid() else "ValueError",
    "seconds": resource.getrlimit(resource.RLIMIT_CPU),
    "core": resource.getrlimit(resource.RLIMIT_CORE),
    "processes": resource.getrlimit(resource.RLIMIT_NPROC),
    "torch": "torch" in sys.modules,
}
print(json.dumps(said))
"""


def test_a_limited_process_can_do_nothing_but_compute(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    run = subprocess.run([sys.executable, "-c", "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)" + TRIED,
                          str(tmp_path / "file")], capture_output=True, check=True)  # fmt: skip
    assert json.loads(run.stdout) == {
        "read": "OSError",
        "create": "OSError",
        "socket": "OSError",
        "pair": "OSError",
        "pipe": "OSError",
        "write": "OSError",
        "memory": "MemoryError",
        "more": "ValueError",
        "seconds": [7, 7],
        "core": [0, 0],
        "processes": [0, 0],
        "torch": False,
    }
    assert (tmp_path / "file").read_bytes() == b""
