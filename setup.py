"""Copies the configurations into the package; everything else stands in ``pyproject.toml``."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Builds the package with ``configs/`` as ``metatransfer/configs``, where ``--config NAME`` finds them."""

    def run(self) -> None:
        """Builds the package."""
        super().run()
        if not self.editable_mode:
            shutil.copytree("configs", Path(self.build_lib, "metatransfer", "configs"), dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithConfigs})
