"""Tests that need a CUDA device, and the same tests on the CPU, where they show that their own logic holds.

`make gpu` runs those of the GPU. Without one they are skipped; `make test-all` runs their CPU cases.
"""

import os

import pytest

# Counts devices by NVML: a process that has asked CUDA itself cannot fork any more.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if needing:
        import torch

        if not torch.cuda.is_available():
            for item in needing:
                item.add_marker(pytest.mark.skip(reason="torch has no CUDA device here. Type make gpu on a machine with one"))


@pytest.fixture(params=[pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """The device of a test; the CPU case is slow, so that the fast tests have none of them."""
    name: str = request.param
    return name
