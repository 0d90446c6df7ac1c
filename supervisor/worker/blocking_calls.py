"""Where a handler's calls run: on the event loop, in threads, or in processes of the worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from supervisor.core.options import PROCESS
from supervisor.handling.decode import as_message
from supervisor.worker.process_calls import ProcessCalls
from supervisor.worker.thread_calls import ThreadCalls

if TYPE_CHECKING:
    from supervisor.handling.decode import Decoder
    from supervisor.handling.loader import HandlerSpec
    from supervisor.worker.resources import Resources
    from supervisor.worker.retry_or_dead_letter import Failures


def calls_of(
    spec: HandlerSpec, resources: Resources, failures: Failures
) -> tuple[ThreadCalls | ProcessCalls, Decoder, int]:
    """Return what calls a plain handler, the worker's decoder for it, and how many messages may run at a time."""
    concurrency, processes = spec.options.concurrency, resources.processes
    if processes is not None and spec.options.run_in == PROCESS:
        return ProcessCalls(processes, spec), as_message, min(concurrency, processes.size)  # the process decodes
    calls = ThreadCalls(resources.threads, resources.control, spec.options.timeout_s, failures.overstayed)
    return calls, spec.decode, concurrency if spec.is_async else min(concurrency, resources.threads.size)
