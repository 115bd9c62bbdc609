"""Programs from Debian's packages, unpacked into a cache folder: nothing is installed and no service is started."""

import os
import subprocess
import tempfile
from pathlib import Path


def unpack_debian(*packages: str) -> Path:
    """The packages' files below one folder of this user (downloaded once by apt)."""
    cache = Path(tempfile.gettempdir()) / f"fleet-test-games-{os.getuid()}"
    done = cache / "-".join(packages)
    if not done.is_dir():
        cache.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as work:
            _download(packages, Path(work))
            root = Path(work) / "root"
            for package in Path(work).glob("*.deb"):
                subprocess.run(["dpkg", "-x", package, root], check=True, capture_output=True, timeout=60)
            if not done.is_dir():  # another run may have been faster
                root.rename(done)
    return done


def _download(packages: tuple[str, ...], folder: Path) -> None:
    command = ["apt-get", "download", *packages]
    first = subprocess.run(command, cwd=folder, capture_output=True, timeout=300, check=False)
    if first.returncode != 0 and os.geteuid() == 0:  # a bare machine has no lists of packages yet
        update = ["apt-get", "-o", "DPkg::Lock::Timeout=120", "update", "-q"]
        subprocess.run(update, check=True, capture_output=True, timeout=300)
        first = subprocess.run(command, cwd=folder, capture_output=True, timeout=300, check=False)
    assert first.returncode == 0, first.stderr.decode()
