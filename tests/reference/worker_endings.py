"""How a worker process of a test ends; light, since a started process imports it."""

import json
import multiprocessing
import os
import signal
import sys
import time


def end_as_told(directory, storage, name, folder, heartbeat, grace):
    """Note the environment in a file called after the process, and end as the other file called after it says."""
    process = multiprocessing.current_process().name
    environment = {key: os.environ.get(key) for key in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")}
    environment["interrupts"] = signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    ending = (folder / process).read_text()
    if ending == "never":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (folder / f"{process}.json").write_text(json.dumps(environment))
    while ending in ("when terminated", "never"):
        time.sleep(0.02)
    if int(ending) < 0:
        os.kill(os.getpid(), -int(ending))
    sys.exit(int(ending))
