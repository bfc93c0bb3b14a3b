"""scripts/fuzz knows every property test of the crate."""

import re
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def targets() -> tuple[str, ...]:
    loader = SourceFileLoader("fuzz", str(ROOT / "scripts/fuzz"))
    spec = spec_from_loader("fuzz", loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    found: tuple[str, ...] = module.TARGETS
    return found


def test_every_property_test_is_a_target() -> None:
    names = set()
    for path in (ROOT / "vmm/src").rglob("*.rs"):
        # A block ends where a brace stands as far left as its beginning.
        for block in re.finditer(r"^( *)proptest! \{\n(.*?)^\1\}", path.read_text(), re.MULTILINE | re.DOTALL):
            names.update(re.findall(r"#\[test\]\s+fn (\w+)\(", block[2]))
    assert names == {target.rsplit("::", 1)[-1] for target in targets()}
