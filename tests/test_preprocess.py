"""Images on the device against the closed form and torchvision's transforms."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as F

from imgrec.data import preprocess
from imgrec.data.preprocess import Preprocess

MEAN, STD = [0.485, 0.456, 0.406, 0.5], [0.229, 0.224, 0.225, 1.0]


@settings(deadline=None)
@given(
    count=st.integers(0, 9),
    channels=st.integers(1, 4),
    size=st.integers(1, 9),
    memory_format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    cached=st.sampled_from([1, 100, 10**6]),
)
def test_bytes_are_normalized_as_by_torchvision(count, channels, size, memory_format, cached):
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(256, (count, channels, size, size), dtype=torch.uint8, generator=generator).to(
        memory_format=memory_format
    )
    mean, std = MEAN[:channels], STD[:channels]
    steps = Preprocess(image_size=size, mean=mean, std=std, interpolation="bilinear")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preprocess, "CACHED_VALUES", cached)
        normalized = steps(images)
    expected = F.normalize(images.double() / 255, mean, std)
    torch.testing.assert_close(normalized, expected.float(), rtol=1e-6, atol=1e-6)
    assert normalized.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(steps.normalize(images / 255), normalized, rtol=1e-6, atol=1e-6)


def test_images_of_another_size_are_resized_as_by_torchvision() -> None:
    images = torch.randint(256, (3, 3, 17, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    steps = Preprocess(image_size=12, mean=[0.0] * 3, std=[1 / 255] * 3, interpolation="bicubic")
    expected = F.resize(images, [12, 12], F.InterpolationMode.BICUBIC)
    torch.testing.assert_close(steps(images), expected.float(), rtol=1e-6, atol=1e-4)
