"""Known vulnerabilities of the pinned dependencies: `python -m fleet.ops.audit requirements.lock`.

pip-audit asks the OSV database about each pin. Without a network, or where something else answers in its place, there
is nothing to ask: that is said, and is no failure. So first one question whose answer is known is asked: an audit that
finds nothing must not pass for one that asked nobody.
"""

import subprocess
import sys
from pathlib import Path

import httpx

OSV = "https://api.osv.dev/v1/query"
KNOWN_BAD = {"package": {"name": "jinja2", "ecosystem": "PyPI"}, "version": "2.4.1"}
LONGEST_S = 600.0


def why_not(url: str = OSV) -> str:
    """Why the database cannot be asked from here; empty if it can."""
    try:
        answer = httpx.post(url, json=KNOWN_BAD, timeout=10.0)
        found = answer.json().get("vulns") if answer.is_success else None
    except (httpx.HTTPError, ValueError, AttributeError) as error:
        return f"{url} cannot be reached ({error!r})"
    return "" if found else f"{url} does not know what it must know (status {answer.status_code})"


def main(lock: Path, url: str = OSV) -> int:
    """0: nothing found, or nobody to ask; else pip-audit's own code, its findings printed."""
    if reason := why_not(url):
        print(f"Audit of dependencies SKIPPED: {reason}.")
        return 0
    command = [sys.executable, "-m", "pip_audit", "-r", str(lock), "--require-hashes", "--disable-pip"]
    options = ["--vulnerability-service", "osv", "--osv-url", url, "--progress-spinner", "off"]
    return subprocess.run([*command, *options], timeout=LONGEST_S, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
