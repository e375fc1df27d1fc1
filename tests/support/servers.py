"""Object stores on this machine, each a server process on a free port."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

START_SECS = 60.0
INSTALL_SECS = 120.0
TRIES = 5

AZURITE = "azurite@3"
# Azurite's own account, which is the same everywhere.
AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class S3Server:
    """Moto's S3, over HTTP.

    Attributes:
        options: Storage options of the store.
    """

    def __init__(self, port: int) -> None:
        self.options: dict[str, Any] = {
            "key": "test-key",
            "secret": "test-secret",
            "endpoint_url": f"http://127.0.0.1:{port}",
            "client_kwargs": {"region_name": "us-east-1"},
        }

    def new_bucket(self) -> str:
        """The URL of a new bucket."""
        import boto3

        name = f"bucket-{uuid.uuid4().hex}"
        client = boto3.client(
            "s3",
            endpoint_url=self.options["endpoint_url"],
            aws_access_key_id=self.options["key"],
            aws_secret_access_key=self.options["secret"],
            region_name="us-east-1",
        )
        with contextlib.closing(client):
            client.create_bucket(Bucket=name)
        return f"s3://{name}"


class AzureServer:
    """Azurite's blob store.

    Attributes:
        options: Storage options of the store.
    """

    def __init__(self, port: int) -> None:
        self.options: dict[str, Any] = {
            "connection_string": f"DefaultEndpointsProtocol=http;AccountName={AZURE_ACCOUNT};AccountKey={AZURE_KEY};"
            f"BlobEndpoint=http://127.0.0.1:{port}/{AZURE_ACCOUNT};"
        }

    def new_container(self) -> str:
        """The URL of a new container."""
        from azure.storage.blob import BlobServiceClient

        name = f"container-{uuid.uuid4().hex}"
        with BlobServiceClient.from_connection_string(self.options["connection_string"]) as client:
            client.create_container(name).close()
        return f"az://{name}"


@contextlib.contextmanager
def s3_server() -> Iterator[S3Server]:
    with _server([sys.executable, "-m", "moto.server", "-H", "127.0.0.1"], "-p") as port:
        yield S3Server(port)


@contextlib.contextmanager
def azure_server(installed_in: Path) -> Iterator[AzureServer]:
    """Run Azurite, installed in a folder on first use.

    Raises:
        LookupError: It cannot be installed here.
    """
    program = installed_in / "node_modules" / ".bin" / "azurite-blob"
    if not program.exists():
        _install_azurite(installed_in)
    quiet = ["--silent", "--disableTelemetry", "--inMemoryPersistence", "--skipApiVersionCheck"]
    with _server([str(program), *quiet, "--blobHost", "127.0.0.1"], "--blobPort") as port:
        yield AzureServer(port)


def _install_azurite(folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise LookupError("npm, which installs Azurite, is not available")
    command = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder), AZURITE]
    try:
        subprocess.run(command, check=True, timeout=INSTALL_SECS, capture_output=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise LookupError(f"npm could not install Azurite: {error}") from error


@contextlib.contextmanager
def _server(command: Sequence[str], port_option: str) -> Iterator[int]:
    """Run a server; yield its port once it accepts connections."""
    for _ in range(TRIES):
        port = _free_port()
        process = subprocess.Popen(
            [*command, port_option, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            # Another process may have taken the port.
            if _answers(process, port):
                yield port
                return
        finally:
            process.kill()
            process.wait()
    raise RuntimeError(f"{command[0]} did not start in {TRIES} tries.")


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    """Whether the server accepts connections; False if it has exited."""
    deadline = time.monotonic() + START_SECS
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{process.args!r} did not answer within {START_SECS:g} s.") from None
            time.sleep(0.05)
        else:
            return True
    return False


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
