"""What is generated of `fleet/client` is what its sources say now."""

import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def test_the_generated_client_is_up_to_date(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "scripts.make_client", "--check", str(tmp_path)], cwd=ROOT, check=True)
    made = {path.relative_to(tmp_path): path.read_text() for path in sorted(tmp_path.rglob("*.py"))}
    assert len(made) > 8
    kept = ROOT / "fleet" / "client"
    stale = [str(path) for path, text in made.items() if (kept / path).read_text() != text]
    assert stale == [], "run 'make client'"
    names = [{path.name for path in (kept / folder).glob("*.py")} for folder in ("_async", "_sync")]
    assert names[0] == names[1], "a module of _sync has no source any more"
