"""Stands where a runtime library would be: says what it is told on standard error and ends the process as it is told."""

import os
import sys

sys.stderr.write(os.environ["DYING_WORDS"])
sys.stderr.flush()
if number := int(os.environ["DYING_SIGNAL"]):
    os.kill(os.getpid(), number)
sys.exit(int(os.environ["DYING_STATUS"]))
