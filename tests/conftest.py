from __future__ import annotations

import pytest
from samplers import BACKENDS, Backend


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.name, scope="session")
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each implementation of the operators in turn."""
    if request.param.missing:
        pytest.skip(request.param.missing)
    return request.param
