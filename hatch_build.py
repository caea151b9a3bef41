"""The build hook: a wheel with the native kernel where there is a C++ compiler, a pure one elsewhere.

GRUJAX_NATIVE=require makes a missing compiler an error, GRUJAX_NATIVE=skip compiles nothing. Sources that do not
compile are an error always.
"""

import os
import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = "grujax/kernels/native"


class CustomBuildHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        mode = os.environ.get("GRUJAX_NATIVE", "")
        if mode not in ("", "require", "skip"):
            raise RuntimeError(f"GRUJAX_NATIVE: expected 'require', 'skip' or nothing, found {mode!r}")
        kernel = runpy.run_path(str(Path(self.root, NATIVE, "build.py")))
        if mode == "skip":
            return
        why = kernel["missing"]()
        if why is not None and mode != "require":
            how = f"install what is missing, then: {kernel['COMMAND']}"
            return self.app.display_warning(f"grujax is built without its native CPU kernel: {why} ({how})")
        try:
            kernel["build"]()
        except RuntimeError as error:
            raise RuntimeError(
                f"{error}\nTo install grujax without its native CPU kernel: GRUJAX_NATIVE=skip"
            ) from None
        # The library is loaded by ctypes and knows nothing of Python: one wheel for a platform, whatever the Python.
        platform = self.build_config.builder.get_best_matching_tag().rpartition("-")[2]
        build_data.update(pure_python=False, tag=f"py3-none-{platform}")
        build_data["artifacts"].append(f"{NATIVE}/{kernel['LIBRARY'].name}")
