"""Functions on two processes that talk over gloo, as torchrun would start them.

Processes are forked from a clean server that has imported the package, which saves each its imports.
"""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["dreamllm.train.loop", "dreamllm.train.objectives.dreamllm"])


def on_ranks(size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What the function, which must be importable, returns on each rank; what it raises fails the test."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = _CONTEXT.Queue()
    processes = [
        _CONTEXT.Process(target=_run, args=(rank, size, port, results, function, args))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    found: dict[int, Any] = {}
    try:
        while len(found) < size:
            rank, value, failure = results.get(timeout=120)
            assert failure is None, failure
            found[rank] = value
    finally:
        for process in processes:
            process.join(timeout=10 if len(found) == size else 0)
            process.kill()
    return [found[rank] for rank in range(size)]


def _run(
    rank: int, size: int, port: int, results: Any, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    import torch

    torch.set_num_threads(1)
    try:
        results.put((rank, function(*args), None))
    except BaseException:  # noqa: BLE001  (whatever it is, the test must hear of it)
        results.put((rank, None, traceback.format_exc()))
