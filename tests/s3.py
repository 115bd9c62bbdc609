"""An S3 server of the tests' own (moto's), in a process of its own, with one bucket."""

import os
import signal
import socket
import subprocess
import sys
import time

import boto3

from fleet.ops.home import free_ports

BUCKET = "builds"
LOGIN = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests", "AWS_EC2_METADATA_DISABLED": "true"}


class S3Server:
    """Runs from construction until `stop`; the kernel ends it with the thread that made it."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.host, self.port = host, free_ports(1)[0]
        command = ["setpriv", "--pdeathsig", "TERM", sys.executable, "-m", "moto.server"]
        self._process = subprocess.Popen(
            [*command, "-H", host, "-p", str(self.port)],
            env=os.environ | LOGIN,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._wait()
        self.client().create_bucket(Bucket=BUCKET)

    def _wait(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection((self.host, self.port), 5).close()
                return
            except OSError:
                assert self._process.poll() is None, "moto's server ended"
                assert time.monotonic() < deadline, "moto's server does not listen"
                time.sleep(0.05)

    @property
    def endpoint(self) -> str:
        return f"http://{self.host}:{self.port}"

    def client(self):
        """boto3's, to look behind the scenes."""
        keys = {"aws_access_key_id": "tests", "aws_secret_access_key": "tests", "region_name": "us-east-1"}
        return boto3.client("s3", endpoint_url=self.endpoint, **keys)

    def url(self, folder: str) -> str:
        """For FLEET_ARTEFACTS_URL, with `LOGIN` in the environment."""
        return f"s3://{BUCKET}/{folder}?endpoint={self.endpoint}&region=us-east-1"

    def keys(self, folder: str) -> list[str]:
        found = self.client().list_objects_v2(Bucket=BUCKET, Prefix=folder + "/").get("Contents", [])
        return sorted(entry["Key"] for entry in found)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)
