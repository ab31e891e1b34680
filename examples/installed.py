"""Imported first by each example: one line, in place of a traceback, where npref is not installed or Ctrl-C comes while it is imported."""

import sys

try:
    import npref.train  # noqa: F401  and with it all that npref needs; before NumPy, see OPENBLAS_THREAD_TIMEOUT in backend.py
except ModuleNotFoundError as error:
    print(f'error: {sys.executable} has no module {error.name}: pip install -e ".[examples]" in the folder with setup.py', file=sys.stderr)
    sys.exit(2)
except Exception as error:  # whatever a library that is there, and broken, raises
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    print(f"error: npref cannot be imported ({reason}): mend or reinstall the library that this is about", file=sys.stderr)
    sys.exit(2)
except KeyboardInterrupt:
    sys.exit(130)
