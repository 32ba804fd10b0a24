"""What pyproject.toml cannot say: a wheel has all modules below cow3d/, and cow3d.py is its `__init__.py`.

An editable install is left as it is: there, the modules are found where they lie.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PACKAGE = "cow3d"


class BelowOnePackage(build_py):
    """Copies modules and data to `<build_lib>/cow3d/`."""

    def finalize_options(self):
        """Take the folder below for everything that is copied."""
        super().finalize_options()
        if not self.editable_mode:
            self.build_lib = str(Path(self.build_lib) / PACKAGE)

    def get_module_outfile(self, build_dir, package, module):
        """Path of a module's copy."""
        door = module == PACKAGE and not self.editable_mode
        return super().get_module_outfile(build_dir, package, "__init__" if door else module)


setup(cmdclass={"build_py": BelowOnePackage})
