"""A wall clock that jumps for the processes of one pool only; the machine's clock stays as it is.

A small library goes between them and libc, and adds what a shared file says to the time of day. The
monotonic clock is not touched, as no `date -s` touches it.
"""

import mmap
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

SOURCE = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *step;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("STEPPED_CLOCK");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *map = mmap(0, 8, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (map != MAP_FAILED) step = map;
}

int clock_gettime(clockid_t id, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, id, now);
    if (result == 0 && step && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) now->tv_sec += *step;
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec time;
    int result = clock_gettime(CLOCK_REALTIME, &time);
    now->tv_sec = time.tv_sec;
    now->tv_usec = time.tv_nsec / 1000;
    return result;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
"""


class SteppedClock:
    """Start processes with `environment`, then `step`."""

    def __init__(self, folder: Path) -> None:
        """Builds the library in `folder`; skips the test without a C compiler."""
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler: the wall clock can't be stepped for one pool alone")
        library, state = folder / "stepped_clock.so", folder / "step"
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), "-x", "c", "-"],
            input=SOURCE.encode(), check=True,
        )  # fmt: skip
        state.write_bytes(bytes(8))
        with state.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 8)
        self.environment = {"LD_PRELOAD": str(library), "STEPPED_CLOCK": str(state)}

    def step(self, seconds: int) -> None:
        """Set the offset of the simulated wall clock."""
        self._map[:] = struct.pack("q", seconds)
