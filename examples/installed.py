"""Imported first by each example: one line, in place of a traceback, where npref is not installed or Ctrl-C comes while it is imported."""

import sys

try:
    import npref.train  # noqa: F401  and with it all that npref needs; before NumPy, see OPENBLAS_THREAD_TIMEOUT in backend.py
except ModuleNotFoundError as error:
    print(f'error: {sys.executable} has no module {error.name}: pip install -e ".[examples]" in the folder with setup.py', file=sys.stderr)
    sys.exit(2)
except ImportError as error:  # of a library that is there, and broken
    print(f"error: npref cannot be imported ({' '.join(str(error).split())[:300]}): install that library anew", file=sys.stderr)
    sys.exit(2)
except KeyboardInterrupt:
    sys.exit(130)
