import pytest


@pytest.fixture
def cache():
    import evanesce

    with evanesce.Cache(device="4MiB", host="4MiB") as cache:
        yield cache


def used(cache):
    return sum(cache.used_bytes().values())
