"""No test writes into the cache of the person who runs it."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        if "SPQUANT_CACHE" not in os.environ:
            patch.setenv("SPQUANT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
