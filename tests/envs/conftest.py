"""Generated games of the tests are kept apart from the user's."""

import pytest


@pytest.fixture(autouse=True)
def game_cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.getbasetemp() / "spark_cache"
    monkeypatch.setenv("SPARK_CACHE", str(folder))
    return folder
