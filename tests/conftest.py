"""For all tests."""

import signal

# A shell that runs the tests in the background has interrupts ignored, and programs inherit that. The tests
# that interrupt a program need it to hear them.
signal.signal(signal.SIGINT, signal.default_int_handler)
