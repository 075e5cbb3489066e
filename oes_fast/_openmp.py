"""How long a waiting thread keeps its core busy; to be imported before torch.

OpenMP's threads spin while they wait for each other. Where another process takes one of the cores, each wait
then lasts until the scheduler moves one of them: a training step on two cores beside one busy process took
3,900 ms, and 180 ms with this setting; on two free cores there was no difference to be seen.
"""

import os
import sys

_SPIN = "GOMP_SPINCOUNT"  # of GNU OpenMP, which torch's Linux builds use
_WAIT = "OMP_WAIT_POLICY"

if "torch" not in sys.modules and _SPIN not in os.environ and _WAIT not in os.environ:
    os.environ[_SPIN] = "1000"  # times a flag is looked at, 300,000 by default
    try:
        import torch  # noqa: F401  OpenMP reads the variable once, when it is loaded
    finally:
        del os.environ[_SPIN]  # child processes decide for themselves
