"""Builds the one extension module; everything else about the package is in pyproject.toml."""

import os
import sys

from Cython.Build import cythonize
from setuptools import Extension, setup

SANITIZERS = {"address", "undefined"}


def sanitizer_flags() -> list[str]:
    """Compile and link flags for GOTASK_SANITIZE; any word but the two known ones is an error."""
    name = os.environ.get("GOTASK_SANITIZE", "")
    if not name:
        return []
    if name not in SANITIZERS:
        sys.exit(f"GOTASK_SANITIZE is {name!r}; it takes one of: {', '.join(sorted(SANITIZERS))}.")
    return [f"-fsanitize={name}", "-O1", "-g", "-fno-omit-frame-pointer"]


def ring() -> Extension:
    flags = sanitizer_flags()
    return Extension(
        "gotask._core.ring",
        ["gotask/_core/ring.pyx"],
        depends=[
            f"gotask/_core/{name}" for name in ("atomic.h", "futex.h", "segment.h", "ring.h", "report.h", "judge.h", "ring.pxd")
        ],
        define_macros=[("_GNU_SOURCE", None)],
        extra_compile_args=["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror=implicit", *flags],
        extra_link_args=flags,
        # Only Linux has memfd and futexes; elsewhere GoTask installs without a node and can still produce jobs.
        optional=not sys.platform.startswith("linux"),
    )


setup(
    ext_modules=cythonize(
        [ring()],
        annotate=os.environ.get("GOTASK_ANNOTATE") == "1",
        compiler_directives={"language_level": 3, "embedsignature": True},
    )
)
