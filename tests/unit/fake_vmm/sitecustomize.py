"""Puts a pretended data plane in place of ``kvmserver._vmm`` in every interpreter that has this folder on its path.

Only tests do that (see conftest.py). What the "program" does is chosen by its name; "requests" are answered from
Python, and "workers" are real processes, so that supervision, warm-up and draining can be tested without KVM.
"""

import importlib
import sys
import types


def _install() -> None:
    pretended = importlib.import_module("pretended")
    module = types.ModuleType("kvmserver._vmm")
    module.__dict__.update({name: getattr(pretended, name) for name in pretended.__all__})
    sys.modules["kvmserver._vmm"] = module


_install()
