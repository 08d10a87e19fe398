"""For all tests."""

import atexit
import os
import shutil
import signal
import tempfile

# A shell that runs the tests in the background has interrupts ignored, and programs inherit that. The tests
# that interrupt a program need it to hear them.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What was found out about models before, here or in another test run, decides nothing.
_CACHE = tempfile.mkdtemp(prefix="persona-tui-tests-")
os.environ["XDG_CACHE_HOME"] = _CACHE
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
