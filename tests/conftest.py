"""Fixtures shared by all tests: where the recorded outputs and the real images are."""
import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def golden():
    """Folder of recorded inputs and outputs of the authors' code."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def data():
    """SIRSTdevkit folder of real images that BAFE_DATA names; the test is skipped where it is not set."""
    root = os.environ.get("BAFE_DATA")
    if not root:
        pytest.skip("BAFE_DATA is not set: tests on real images are skipped")
    return Path(root)
