"""One thread per test process: workers run side by side, and two threads on a busy core are slower than one."""

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"  # before numpy and torch are imported, and for the processes that tests start
