"""Directories on real stores. Tests with the fixture `place` run on each of them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from support.saves import Place
from support.servers import AzureServer, S3Server, azure_server, s3_server


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture(scope="session")
def azure(pytestconfig: pytest.Config) -> Iterator[AzureServer]:
    assert pytestconfig.cache is not None
    try:
        with azure_server(pytestconfig.cache.mkdir("azurite")) as server:
            yield server
    except LookupError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["local", "memory", "s3", "azure"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """An empty directory on each store."""
    kind = request.param
    if kind == "s3":
        server = request.getfixturevalue("s3")
        yield Place(f"{server.new_bucket()}/runs/one", kind, server.options)
    elif kind == "azure":
        server = request.getfixturevalue("azure")
        yield Place(f"{server.new_container()}/runs/one", kind, server.options)
    elif kind == "memory":
        place = Place(f"memory://{uuid.uuid4().hex}", kind)
        yield place
        place.storage.remove_dir(place.url)
    else:
        folder: Path = request.getfixturevalue("tmp_path")
        yield Place(f"{folder}/place", kind)


@pytest.fixture
def object_store(s3: S3Server) -> tuple[str, Mapping[str, Any]]:
    """A model_dir on an S3 server that does not exist yet, and the storage options of the server."""
    return f"{s3.new_bucket()}/run", s3.options
