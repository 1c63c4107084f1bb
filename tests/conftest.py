"""No test reaches for a network, and none writes to the user's caches."""

import atexit
import os
import shutil
import tempfile


_cache = tempfile.mkdtemp(prefix="hf_focal_tests_")
atexit.register(shutil.rmtree, _cache, ignore_errors=True)
os.environ.update(HF_HOME=_cache, HF_HUB_OFFLINE="1")
