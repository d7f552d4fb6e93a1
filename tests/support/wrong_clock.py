"""A machine whose calendar is wrong, for real processes: every call that asks for the time of day is answered with an offset.

A small library is built with the C compiler of the machine and put before all others (`LD_PRELOAD`), so that Python, OpenSSL and gRPC
believe it alike. Monotonic clocks are left alone, as on a board whose calendar is wrong.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from rkfleet.clock import SystemClock

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static long offset(void) {
    const char *text = getenv("WRONG_CLOCK_SECONDS");
    return text ? atol(text) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, at);
    if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) at->tv_sec += offset();
    return result;
}

int gettimeofday(struct timeval *at, void *zone) {
    struct timespec now;
    (void)zone;
    int result = clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return result;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"""

needs_compiler = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed, which builds the wrong clock")


def wrong_clock(directory: Path, year: int) -> Mapping[str, str]:
    """Return the environment of a process that believes to be in this year."""
    source, library = directory / "wrong_clock.c", directory / "wrong_clock.so"
    if not library.exists():
        source.write_text(SOURCE)
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    offset = datetime(year, 1, 2, tzinfo=UTC) - SystemClock().now()
    return {"LD_PRELOAD": str(library), "WRONG_CLOCK_SECONDS": str(round(offset.total_seconds()))}
