from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from surveys import BUCKET

from geobatch.local_s3 import LocalS3, environment, local_s3

os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# A busy machine must not fail a property by its pace.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[LocalS3]:
    with local_s3(BUCKET) as server:
        yield server


@pytest.fixture
def s3(s3_server: LocalS3) -> Iterator[str]:
    """A fresh prefix in a bucket of a real S3 server process, with the AWS environment set."""
    with environment(s3_server.environment):
        yield f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def ray_cluster(s3_server: LocalS3) -> Iterator[None]:
    """A local Ray cluster of two CPUs, its workers in the S3 server's environment."""
    import ray

    with environment(s3_server.environment):
        ray.init(num_cpus=2, object_store_memory=200 * 2**20, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real files; a visible skip where it is absent."""
    folder = os.environ.get("GEOBATCH_TEST_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip(f"GEOBATCH_TEST_DATA={folder or '(unset)'} is no folder of real data")
    return Path(folder)
